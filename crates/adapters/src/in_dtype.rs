//! A lowered adapter in the element type in which it would be served. For tools that compare the two: a
//! server converts while it reads.

use crate::dtype::{AdapterDtype, convert};
use crate::error::Refusal;
use crate::lower::Update;
use weft_types::LoweredAdapter;

/// Converts every update as `--adapter-dtype` does; [`AdapterDtype::Auto`] changes nothing.
///
/// # Errors
/// If the type does not hold a value.
pub fn in_dtype(adapter: LoweredAdapter, dtype: AdapterDtype) -> Result<LoweredAdapter, Refusal> {
    // Only the automatic choice depends on the size of chunks: all rows fit into these.
    let converted = |mut update| convert(&mut update, dtype, usize::MAX).map(|()| update);
    let LoweredAdapter { low_rank, embedding, bottlenecks, token_rows, kv_prefix, .. } = adapter;
    let mut result = LoweredAdapter {
        content_hash: adapter.content_hash,
        vectors: adapter.vectors,
        num_virtual_tokens: adapter.num_virtual_tokens,
        invocation_tokens: adapter.invocation_tokens,
        ..LoweredAdapter::default()
    };
    for update in low_rank {
        if let Update::LowRank(update) = converted(Update::LowRank(update))? {
            result.low_rank.push(update);
        }
    }
    for bottleneck in bottlenecks {
        if let Update::Bottleneck(bottleneck) = converted(Update::Bottleneck(bottleneck))? {
            result.bottlenecks.push(bottleneck);
        }
    }
    if let Some(update) = embedding
        && let Update::Embedding(update) = converted(Update::Embedding(update))?
    {
        result.embedding = Some(update);
    }
    if let Some(rows) = token_rows
        && let Update::TokenRows(rows) = converted(Update::TokenRows(rows))?
    {
        result.token_rows = Some(rows);
    }
    if let Some(prefix) = kv_prefix
        && let Update::KvPrefix(prefix) = converted(Update::KvPrefix(prefix))?
    {
        result.kv_prefix = Some(prefix);
    }
    Ok(result)
}

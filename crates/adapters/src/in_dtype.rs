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
    let LoweredAdapter { low_rank, embedding, bottlenecks, token_rows, kv_prefix, .. } = adapter;
    let mut result = LoweredAdapter {
        content_hash: adapter.content_hash,
        vectors: adapter.vectors,
        num_virtual_tokens: adapter.num_virtual_tokens,
        invocation_tokens: adapter.invocation_tokens,
        ..LoweredAdapter::default()
    };
    let updates = (low_rank.into_iter().map(Update::LowRank))
        .chain(bottlenecks.into_iter().map(Update::Bottleneck))
        .chain(embedding.map(Update::Embedding))
        .chain(token_rows.map(Update::TokenRows))
        .chain(kv_prefix.map(Update::KvPrefix));
    for mut update in updates {
        // Only the automatic choice depends on the size of chunks: all rows fit into these.
        convert(&mut update, dtype, usize::MAX)?;
        update.put_into(&mut result);
    }
    Ok(result)
}

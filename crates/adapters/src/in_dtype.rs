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
    let mut result = LoweredAdapter { low_rank: Vec::new(), embedding: None, ..adapter };
    for update in adapter.low_rank {
        if let Update::LowRank(update) = converted(Update::LowRank(update))? {
            result.low_rank.push(update);
        }
    }
    if let Some(update) = adapter.embedding
        && let Update::Embedding(update) = converted(Update::Embedding(update))?
    {
        result.embedding = Some(update);
    }
    Ok(result)
}

//! Whether a sequence could run at all, were it alone. In: limits and lengths. Out: a refusal that
//! says what to change. Knows nothing of what runs now.

use weft_types::{ExecutorLimits, StopConditions};

/// Why a sequence is refused before it is queued.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddError {
    /// There is nothing to compute.
    #[error("the prompt is empty: send at least one token")]
    EmptyPrompt,
    /// The prompt leaves no room in the model's context.
    #[error(
        "the prompt has {tokens} tokens, but at most {max} fit the context of this server{}",
        beside(*num_virtual)
    )]
    PromptTooLong {
        /// Length of the prompt as it was given.
        tokens: usize,
        /// Virtual tokens of its adapter.
        num_virtual: usize,
        /// The longest that would be accepted.
        max: usize,
    },
    /// Even alone, adapter and sequence would not fit the device's memory.
    #[error(
        "the adapter takes {adapter} chunks of this server's memory and the request up to {needed}, \
         of {max} in all: lower max_tokens, or give the server more --memory"
    )]
    AdapterTooLarge {
        /// Chunks of the adapter.
        adapter: usize,
        /// Blocks at the sequence's full length.
        needed: usize,
        /// Chunks in all.
        max: usize,
    },
    /// Even alone, the sequence would outgrow the KV cache before its last token.
    #[error(
        "prompt and output need {needed} KV cache blocks{}, but this server has {max}: lower \
         max_tokens, or give the server more memory",
        beside(*num_virtual)
    )]
    TooManyBlocks {
        /// Blocks at the sequence's full length.
        needed: usize,
        /// Virtual tokens of its adapter.
        num_virtual: usize,
        /// Blocks in all.
        max: usize,
    },
}

fn beside(num_virtual: usize) -> String {
    match num_virtual {
        0 => String::new(),
        _ => format!(" together with {num_virtual} virtual tokens of the adapter"),
    }
}

/// How long a prompt is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PromptLength {
    /// Tokens that the client sent.
    pub given: usize,
    /// Virtual tokens that its adapter puts before them.
    pub num_virtual: usize,
}

impl From<usize> for PromptLength {
    /// Without virtual tokens.
    fn from(given: usize) -> Self {
        Self { given, num_virtual: 0 }
    }
}

/// Whether such a prompt with these stop conditions can complete, given all of the memory for itself
/// and an adapter of `adapter_chunks`.
///
/// # Errors
/// As the variants of [`AddError`] say.
pub fn check_fits(
    limits: &ExecutorLimits,
    prompt: PromptLength,
    stop: &StopConditions,
    adapter_chunks: usize,
) -> Result<(), AddError> {
    let PromptLength { given, num_virtual } = prompt;
    if given == 0 {
        return Err(AddError::EmptyPrompt);
    }
    let num_prompt_tokens = given + num_virtual;
    // Something that is to be drawn needs a position in the context; a bare prompt does not.
    let max = limits.max_model_len - usize::from(stop.max_tokens > 0).min(limits.max_model_len);
    if num_prompt_tokens > max {
        let max = max.saturating_sub(num_virtual);
        return Err(AddError::PromptTooLong { tokens: given, num_virtual, max });
    }
    let needed = max_positions(limits, num_prompt_tokens, stop).div_ceil(limits.block_size);
    if needed > limits.num_blocks {
        return Err(AddError::TooManyBlocks { needed, num_virtual, max: limits.num_blocks });
    }
    if needed + adapter_chunks > limits.num_blocks {
        let (adapter, max) = (adapter_chunks, limits.num_blocks);
        return Err(AddError::AdapterTooLarge { adapter, needed, max });
    }
    Ok(())
}

/// Positions in the KV cache at the sequence's end. The last drawn token is never fed, so it has
/// none.
fn max_positions(
    limits: &ExecutorLimits,
    num_prompt_tokens: usize,
    stop: &StopConditions,
) -> usize {
    let longest = num_prompt_tokens.saturating_add(stop.max_tokens as usize);
    longest.min(limits.max_model_len).saturating_sub(1).max(num_prompt_tokens)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: ExecutorLimits = ExecutorLimits {
        block_size: 4,
        num_blocks: 5,
        chunk_bytes: 64,
        max_model_len: 32,
        max_num_seqs: 8,
        max_num_batched_tokens: 16,
    };

    fn check(num_prompt_tokens: usize, max_tokens: u32) -> Result<(), AddError> {
        let stop = StopConditions { max_tokens, ..StopConditions::default() };
        check_fits(&LIMITS, num_prompt_tokens.into(), &stop, 0)
    }

    fn too_many_blocks(needed: usize) -> Result<(), AddError> {
        Err(AddError::TooManyBlocks { needed, num_virtual: 0, max: 5 })
    }

    #[test]
    fn what_can_never_complete_is_refused() {
        assert_eq!(check(0, 1), Err(AddError::EmptyPrompt));
        let too_long = |tokens, max| Err(AddError::PromptTooLong { tokens, num_virtual: 0, max });
        assert_eq!(check(32, 1), too_long(32, 31));
        assert_eq!(check(33, 0), too_long(33, 32));
        assert_eq!(check(10, 12), too_many_blocks(6));
        assert_eq!(check(10, u32::MAX), too_many_blocks(8));
    }

    #[test]
    fn an_adapter_needs_room_beside_the_sequence() {
        let stop = StopConditions { max_tokens: 3, ..StopConditions::default() };
        assert_eq!(check_fits(&LIMITS, 10.into(), &stop, 2), Ok(()));
        let refused = AddError::AdapterTooLarge { adapter: 3, needed: 3, max: 5 };
        assert_eq!(check_fits(&LIMITS, 10.into(), &stop, 3), Err(refused));
    }

    #[test]
    fn the_last_token_needs_no_position_in_the_cache() {
        assert_eq!(check(10, 11), Ok(()));
        assert_eq!(check(20, 0), Ok(()));
        assert_eq!(check(20, 1), Ok(()));
        assert_eq!(check(21, 0), too_many_blocks(6));
    }

    #[test]
    fn virtual_tokens_count_and_the_refusal_says_so() {
        let stop = StopConditions { max_tokens: 1, ..StopConditions::default() };
        let check =
            |given, num_virtual| check_fits(&LIMITS, PromptLength { given, num_virtual }, &stop, 0);
        assert_eq!(check(0, 3), Err(AddError::EmptyPrompt));
        assert_eq!(check(16, 4), Ok(()));
        let words = check(28, 4).unwrap_err().to_string();
        assert_eq!(
            words,
            "the prompt has 28 tokens, but at most 27 fit the context of this server together with 4 \
             virtual tokens of the adapter"
        );
        let words = check(17, 4).unwrap_err().to_string();
        assert!(words.contains("6 KV cache blocks together with 4 virtual tokens"), "{words}");
        assert!(matches!(check(1, 40), Err(AddError::PromptTooLong { max: 0, .. })));
    }
}

//! What an adapter makes of a prompt. In: the client's tokens and the adapter. Out: the tokens that the
//! sequence begins with, and from which of them on the adapter is active. Knows no limits.

use std::sync::Arc;
use weft_types::{AdapterLayout, TokenId};

/// A prompt as it is computed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct AdaptedPrompt {
    /// The adapter's virtual tokens, then the client's.
    pub(crate) tokens: Arc<[TokenId]>,
    /// Of those, how many are virtual.
    pub(crate) num_virtual: usize,
    /// Position of the first token with the adapter; `None` if there is none: it is all the base's.
    pub(crate) active_from: Option<usize>,
}

impl AdaptedPrompt {
    /// Virtual tokens have the ids from `vocab_size` on.
    pub(crate) fn new(
        prompt: &Arc<[TokenId]>,
        adapter: Option<&AdapterLayout>,
        vocab_size: usize,
    ) -> Self {
        let num_virtual = adapter.map_or(0, |adapter| adapter.num_virtual_tokens);
        let first_virtual = vocab_size as TokenId;
        let virtual_tokens = first_virtual..first_virtual + num_virtual as TokenId;
        let tokens = match num_virtual {
            0 => Arc::clone(prompt),
            _ => virtual_tokens.chain(prompt.iter().copied()).collect(),
        };
        let active_from = adapter.and_then(|adapter| match &adapter.invocation_tokens {
            None => Some(0),
            Some(invocation) => last_occurrence(&tokens, invocation),
        });
        Self { tokens, num_virtual, active_from }
    }
}

/// Where the last occurrence of `wanted` in `tokens` begins.
fn last_occurrence(tokens: &[TokenId], wanted: &[TokenId]) -> Option<usize> {
    if wanted.is_empty() {
        return None;
    }
    tokens.windows(wanted.len()).rposition(|window| window == wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn adapted(prompt: &[TokenId], layout: &AdapterLayout) -> AdaptedPrompt {
        AdaptedPrompt::new(&prompt.into(), Some(layout), 100)
    }

    #[test]
    fn virtual_tokens_come_first_and_have_the_ids_after_the_vocabulary() {
        let layout = AdapterLayout { num_virtual_tokens: 3, ..AdapterLayout::default() };
        let adapted = adapted(&[7, 8], &layout);
        assert_eq!(*adapted.tokens, [100, 101, 102, 7, 8]);
        assert_eq!((adapted.num_virtual, adapted.active_from), (3, Some(0)));
        let base = AdaptedPrompt::new(&[7, 8].into(), None, 100);
        assert_eq!((base.num_virtual, base.active_from), (0, None));
    }

    #[test]
    fn an_activated_adapter_begins_with_the_last_occurrence_of_its_invocation_tokens() {
        let invocation_tokens = Some([5, 6].into());
        let layout = AdapterLayout { invocation_tokens, ..AdapterLayout::default() };
        let from = |prompt: &[TokenId]| adapted(prompt, &layout).active_from;
        assert_eq!(from(&[5, 6, 1, 5, 6, 2]), Some(3));
        assert_eq!(from(&[1, 2, 5, 6]), Some(2));
        assert_eq!(from(&[5, 6]), Some(0));
        assert_eq!(from(&[5, 5, 6, 6]), Some(1));
        assert_eq!(from(&[5, 1, 6, 5]), None);
        assert_eq!(from(&[6]), None);
    }
}

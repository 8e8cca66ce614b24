//! Prompts as words, for routes and servers that take no token ids. In: random token ids. Out: text
//! of about as many tokens, as random as the ids.

use weft_types::TokenId;

/// Common words: in most vocabularies each is one token together with the space before it.
#[rustfmt::skip]
const WORDS: [&str; 64] = [
    "time", "year", "people", "way", "day", "man", "thing", "woman", "life", "child", "world",
    "school", "state", "family", "student", "group", "country", "problem", "hand", "part",
    "place", "case", "week", "company", "system", "program", "question", "work", "government",
    "number", "night", "point", "home", "water", "room", "mother", "area", "money", "story",
    "fact", "month", "lot", "right", "study", "book", "eye", "job", "word", "business", "issue",
    "side", "kind", "head", "house", "service", "friend", "father", "power", "hour", "game",
    "line", "end", "member", "law",
];

const SAMPLE_WORDS: usize = 256;

/// How tokens become words.
#[derive(Clone, Debug)]
pub(super) struct Wording {
    tokens_per_word: f64,
}

impl Default for Wording {
    fn default() -> Self {
        Self { tokens_per_word: 1.0 }
    }
}

impl Wording {
    /// A text to count the tokens of.
    pub(super) fn sample(&self) -> String {
        join((0..SAMPLE_WORDS as TokenId).map(|i| i.wrapping_mul(37)))
    }

    /// The wording for a tokenizer that makes `num_tokens` of [`Self::sample`].
    pub(super) fn calibrated(&self, num_tokens: usize) -> Self {
        Self { tokens_per_word: num_tokens.max(1) as f64 / SAMPLE_WORDS as f64 }
    }

    /// Text of about `prompt.len()` tokens.
    pub(super) fn text(&self, prompt: &[TokenId]) -> String {
        let num_words = (prompt.len() as f64 / self.tokens_per_word).round().max(1.0) as usize;
        join(prompt.iter().copied().cycle().take(num_words))
    }
}

fn join(ids: impl Iterator<Item = TokenId>) -> String {
    let words: Vec<&str> = ids.map(|id| WORDS[id as usize % WORDS.len()]).collect();
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_stands_for_as_many_tokens_as_measured() {
        let prompt: Vec<TokenId> = (0..120).collect();
        let count = |wording: &Wording| wording.text(&prompt).split(' ').count();
        let wording = Wording::default();
        assert_eq!(count(&wording), 120);
        assert_eq!(count(&wording.calibrated(SAMPLE_WORDS * 2)), 60);
        assert_eq!(count(&wording.calibrated(SAMPLE_WORDS / 2)), 240);
    }
}

//! What the rows of a step want, laid out as the kernels read it. Knows no device.

use super::MAX_TOP;
use weft_types::{SamplingParams, TokenId};

const ACTIVE: u32 = 1;
const GREEDY: u32 = 2;
const TRUNCATED: u32 = 4;
const WANTS_LOGPROBS: u32 = 8;
/// No mask.
const NONE: u32 = u32::MAX;
/// Below, a temperature tells no two logits from equal ones anyway, and 1 / temperature is finite.
const MIN_TEMPERATURE: f64 = 1e-30;

/// As in the kernels.
#[derive(Clone, Copy, Debug, bytemuck::NoUninit)]
#[repr(C)]
pub(super) struct SamplingRow {
    u: f64,
    inv_temperature: f32,
    top_p: f32,
    min_p_distance: f32,
    repetition: f32,
    presence: f32,
    frequency: f32,
    top_k: u32,
    flags: u32,
    num_top: u32,
    mask_begin: u32,
    lists_begin: u32,
    num_biases: u32,
    num_penalties: u32,
    num_banned: u32,
}

pub(super) const ROW_WORDS: usize = 16;

/// What one row wants.
#[derive(Clone, Copy, Debug)]
pub struct RowRequest<'a> {
    /// As the request has it.
    pub sampling: &'a SamplingParams,
    /// In [0, 1): where in the mass the token lies.
    pub u: f64,
    /// Never drawn: stop tokens that come too early.
    pub banned: &'a [TokenId],
    /// A grammar's: bit `t % 32` of word `t / 32` is set if token `t` is allowed.
    pub mask: Option<&'a [u32]>,
}

/// See the module. Cleared and filled again each step; its memory stays.
#[derive(Debug)]
pub struct SamplingPlan {
    max_rows: usize,
    vocab: usize,
    num_rows: usize,
    /// Rows, then lists.
    words: Vec<u32>,
    biases: Vec<(TokenId, f32)>,
}

impl SamplingPlan {
    /// For [`super::SamplingBuffers`] of as many rows and tokens.
    #[must_use]
    pub fn new(max_rows: usize, vocab: usize) -> Self {
        let words = vec![0; max_rows * ROW_WORDS];
        Self { max_rows, vocab, num_rows: 0, words, biases: Vec::new() }
    }

    /// All rows are padding again.
    pub fn clear(&mut self) {
        self.num_rows = 0;
        self.words.truncate(self.max_rows * ROW_WORDS);
        self.words.fill(0);
    }

    /// The next row. `seen`: each token of the prompt and of the output once, with how often it is
    /// in the output; only read if the row has penalties.
    ///
    /// # Panics
    /// When all rows are taken, the mask has another length, or a token of `seen` is outside of the
    /// vocabulary.
    pub fn push(
        &mut self,
        request: RowRequest<'_>,
        seen: impl IntoIterator<Item = (TokenId, u32)>,
    ) {
        let RowRequest { sampling, u, banned, mask } = request;
        assert!(self.num_rows < self.max_rows, "a plan has only {} rows", self.max_rows);
        let mut flags = ACTIVE;
        if sampling.temperature <= 0.0 {
            flags |= GREEDY;
        }
        if sampling.top_k != 0 || sampling.top_p < 1.0 || sampling.min_p > 0.0 {
            flags |= TRUNCATED;
        }
        if sampling.logprobs.is_some() {
            flags |= WANTS_LOGPROBS;
        }
        let temperature = f64::from(sampling.temperature).max(MIN_TEMPERATURE);
        let first_list = self.max_rows * ROW_WORDS;
        let lists_begin = self.words.len() - first_list;
        let num_biases = self.push_biases(&sampling.logit_bias);
        let num_penalties = self.push_penalties(sampling, seen);
        self.words.extend(banned);
        let mask_begin = mask.map_or(NONE, |mask| {
            assert_eq!(mask.len(), self.vocab.div_ceil(32), "words of a mask");
            let begin = (self.words.len() - first_list) as u32;
            self.words.extend(mask);
            begin
        });
        let row = SamplingRow {
            u,
            inv_temperature: (1.0 / temperature) as f32,
            top_p: sampling.top_p,
            // exp((x - max) / temperature) >= min_p, in logits: no rounding of exp decides.
            min_p_distance: if sampling.min_p > 0.0 {
                (f64::from(sampling.min_p.min(1.0)).ln() * temperature) as f32
            } else {
                f32::NEG_INFINITY
            },
            repetition: sampling.repetition_penalty,
            presence: sampling.presence_penalty,
            frequency: sampling.frequency_penalty,
            top_k: sampling.top_k,
            flags,
            num_top: sampling.logprobs.map_or(0, |num| num.min(MAX_TOP as u32)),
            mask_begin,
            lists_begin: lists_begin as u32,
            num_biases,
            num_penalties,
            num_banned: banned.len() as u32,
        };
        self.words[self.num_rows * ROW_WORDS..][..ROW_WORDS]
            .copy_from_slice(&bytemuck::cast::<SamplingRow, [u32; ROW_WORDS]>(row));
        self.num_rows += 1;
    }

    /// A row of padding: nothing is drawn.
    ///
    /// # Panics
    /// When all rows are taken.
    pub fn push_padding(&mut self) {
        assert!(self.num_rows < self.max_rows, "a plan has only {} rows", self.max_rows);
        self.num_rows += 1;
    }

    /// Rows so far.
    #[must_use]
    pub fn num_rows(&self) -> usize {
        self.num_rows
    }

    /// A token that is biased twice would be written by two threads: such biases become one.
    fn push_biases(&mut self, biases: &[(TokenId, f32)]) -> u32 {
        self.biases.clear();
        self.biases.extend_from_slice(biases);
        self.biases.sort_by_key(|&(token, _)| token);
        self.biases.dedup_by(|next, kept| {
            let same = next.0 == kept.0;
            if same {
                kept.1 += next.1;
            }
            same
        });
        self.words.extend(self.biases.iter().flat_map(|&(token, bias)| [token, bias.to_bits()]));
        self.biases.len() as u32
    }

    fn push_penalties(
        &mut self,
        sampling: &SamplingParams,
        seen: impl IntoIterator<Item = (TokenId, u32)>,
    ) -> u32 {
        let repetition = sampling.repetition_penalty != 1.0;
        let of_output = sampling.presence_penalty != 0.0 || sampling.frequency_penalty != 0.0;
        if !repetition && !of_output {
            return 0;
        }
        let mut num_penalties = 0;
        for (token, count) in seen {
            assert!((token as usize) < self.vocab, "token {token} of {}", self.vocab);
            // Tokens of the prompt alone are only repeated.
            if repetition || count != 0 {
                self.words.extend([token, count]);
                num_penalties += 1;
            }
        }
        num_penalties
    }

    pub(super) fn max_rows(&self) -> usize {
        self.max_rows
    }

    /// Tokens of the vocabulary.
    #[must_use]
    pub fn vocab(&self) -> usize {
        self.vocab
    }

    pub(super) fn words(&self) -> &[u32] {
        &self.words
    }
}

//! Token by token gives the same text as all at once, whatever the tokens are.

use crate::gguf_tokenizer::{byte_level_entries, sentence_piece};
use crate::gguf_writer::metadata;
use proptest::prelude::*;
use std::sync::LazyLock;
use weft_text::{IncrementalDetokenizer, Tokenizer};

static TOKENIZERS: LazyLock<[Tokenizer; 2]> = LazyLock::new(|| {
    let byte_level = Tokenizer::from_gguf_metadata(&metadata(&byte_level_entries("smollm")));
    [byte_level.unwrap(), sentence_piece()]
});

fn stream(detokenizer: &mut IncrementalDetokenizer, tokens: &[u32]) -> Vec<String> {
    let mut pieces: Vec<String> = tokens.iter().map(|token| detokenizer.push(*token)).collect();
    pieces.push(detokenizer.finish());
    pieces
}

#[test]
fn a_character_over_several_tokens_is_sent_once_and_whole() {
    let [byte_level, sentence_piece] = &*TOKENIZERS;
    let tokens = byte_level.encode("a🙂b", false).unwrap();
    let mut detokenizer = IncrementalDetokenizer::new(byte_level.clone(), true);
    assert_eq!(stream(&mut detokenizer, &tokens), ["a", "", "", "", "🙂", "b", ""]);
    let tokens = sentence_piece.encode("日", false).unwrap();
    let text = stream(&mut IncrementalDetokenizer::new(sentence_piece.clone(), true), &tokens);
    assert_eq!(text.iter().filter(|piece| !piece.is_empty()).collect::<Vec<_>>(), ["日"]);
}

#[test]
fn an_incomplete_character_at_the_end_is_replaced() {
    let mut detokenizer = IncrementalDetokenizer::new(TOKENIZERS[0].clone(), true);
    assert_eq!(stream(&mut detokenizer, &[0xf0, 0x9f]), ["", "", "\u{fffd}"]);
    assert_eq!(stream(&mut detokenizer, &[0xf0, 0x61]), ["", "\u{fffd}a", ""]);
}

#[test]
fn a_text_after_a_prompt_keeps_its_first_space() {
    let tokenizer = TOKENIZERS[1].clone();
    let tokens = tokenizer.encode("the model", false).unwrap();
    let mut at_start = IncrementalDetokenizer::new(tokenizer.clone(), true);
    assert_eq!(stream(&mut at_start, &tokens).concat(), "the model");
    let mut after_prompt = IncrementalDetokenizer::after_prompt(tokenizer, true);
    assert_eq!(stream(&mut after_prompt, &tokens).concat(), " the model");
}

proptest! {
    #[test]
    fn pieces_together_are_the_decoded_whole(
        tokens in prop::collection::vec(0_u32..450, 0..60),
        bytes in prop::collection::vec(0_u32..259, 0..60),
        skip_special in any::<bool>(),
    ) {
        for tokenizer in &*TOKENIZERS {
            for tokens in [&tokens, &bytes] {
                let mut detokenizer = IncrementalDetokenizer::new(tokenizer.clone(), skip_special);
                let pieces = stream(&mut detokenizer, tokens);
                prop_assert_eq!(pieces.concat(), tokenizer.decode(tokens, skip_special));
            }
        }
    }

    #[test]
    fn texts_survive_encoding_and_decoding(text in "\\PC{0,40}") {
        for tokenizer in &*TOKENIZERS {
            let tokens = tokenizer.encode(&text, false).unwrap();
            // SentencePiece writes a space and the mark it stands for alike.
            let expected = if tokenizer.token_id("▁").is_some() { text.replace('▁', " ") } else { text.clone() };
            prop_assert_eq!(tokenizer.decode(&tokens, false), expected);
        }
    }
}

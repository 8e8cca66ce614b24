//! The bytes that each token stands for: a vocabulary and a decoder's rules in, one table out.
//!
//! Byte-level and SentencePiece vocabularies differ only here; after this, decoding is copying
//! bytes. Where bytes are no UTF-8, replacement characters are made from the whole text, not token
//! by token. (The byte-fallback decoder of `tokenizers` writes one for every byte of a run that
//! has a bad byte anywhere, so that a character already sent could change; here it cannot.)

use crate::error::TextError;
use serde_json::Value;

/// How a token's text becomes bytes.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Decoding {
    /// Each character stands for a byte, as in GPT-2.
    ByteLevel,
    /// Text with replacements; `<0x0A>` is a byte.
    Text { replacements: Vec<(String, String)>, byte_fallback: bool, leading: Leading },
}

/// What happens to spaces at the beginning of a text.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Leading {
    Keep,
    /// So many spaces are dropped from the beginning of the text.
    Strip(usize),
    /// All spaces of the first token are dropped.
    StripFirstToken,
}

impl Leading {
    /// Appends the bytes of the next token.
    pub(crate) fn trim_into(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        match *self {
            Self::Keep => out.extend_from_slice(bytes),
            Self::StripFirstToken => {
                out.extend(bytes.iter().filter(|byte| **byte != b' '));
                *self = Self::Keep;
            }
            Self::Strip(most) => {
                let spaces = bytes.iter().take(most).take_while(|byte| **byte == b' ').count();
                let rest = bytes.get(spaces..).unwrap_or_default();
                out.extend_from_slice(rest);
                if spaces == most || !rest.is_empty() {
                    *self = Self::Keep;
                } else {
                    *self = Self::Strip(most - spaces);
                }
            }
        }
    }
}

impl Decoding {
    /// SentencePiece: `▁` is a space, and the one before the text is not part of it.
    pub(crate) fn sentence_piece(strip_prefix: bool) -> Self {
        Self::Text {
            replacements: vec![("\u{2581}".to_owned(), " ".to_owned())],
            byte_fallback: true,
            leading: if strip_prefix { Leading::Strip(1) } else { Leading::Keep },
        }
    }

    /// From the `decoder` of a tokenizer.json.
    ///
    /// # Errors
    /// For a decoder with other rules.
    pub(crate) fn from_json(decoder: &Value) -> Result<Self, TextError> {
        let mut steps = Vec::new();
        flatten(decoder, &mut steps);
        if steps.iter().any(|step| kind(step) == "ByteLevel") {
            return match steps.as_slice() {
                [_] => Ok(Self::ByteLevel),
                _ => Err(unknown(decoder)),
            };
        }
        let (mut replacements, mut byte_fallback) = (Vec::new(), false);
        let mut leading = Leading::Keep;
        for step in steps {
            match kind(step) {
                "Replace" => {
                    let from = step["pattern"]["String"].as_str().ok_or_else(|| unknown(step))?;
                    let to = step["content"].as_str().ok_or_else(|| unknown(step))?;
                    replacements.push((from.to_owned(), to.to_owned()));
                }
                "ByteFallback" => byte_fallback = true,
                "Fuse" => {}
                "Strip" if step["content"] == " " && step["stop"] == 0 => {
                    let start =
                        step["start"].as_u64().and_then(|start| usize::try_from(start).ok());
                    leading = Leading::Strip(start.ok_or_else(|| unknown(step))?);
                }
                "Metaspace" => {
                    let space = step["replacement"].as_str().ok_or_else(|| unknown(step))?;
                    replacements.push((space.to_owned(), " ".to_owned()));
                    if step["prepend_scheme"] != "never" {
                        leading = Leading::StripFirstToken;
                    }
                }
                _ => return Err(unknown(step)),
            }
        }
        Ok(Self::Text { replacements, byte_fallback, leading })
    }

    fn bytes_into(&self, token: &str, out: &mut Vec<u8>) {
        match self {
            Self::ByteLevel => {
                let start = out.len();
                for char in token.chars() {
                    match byte_of(char) {
                        Some(byte) => out.push(byte),
                        None => {
                            // An added token, written as plain text.
                            out.truncate(start);
                            out.extend_from_slice(token.as_bytes());
                            return;
                        }
                    }
                }
            }
            Self::Text { replacements, byte_fallback, .. } => {
                if *byte_fallback && let Some(byte) = fallback_byte(token) {
                    out.push(byte);
                    return;
                }
                let mut text = token.to_owned();
                for (from, to) in replacements {
                    text = text.replace(from, to);
                }
                out.extend_from_slice(text.as_bytes());
            }
        }
    }
}

/// The steps of nested `Sequence` decoders, in order.
fn flatten<'a>(decoder: &'a Value, steps: &mut Vec<&'a Value>) {
    match decoder["decoders"].as_array() {
        Some(inner) => inner.iter().for_each(|step| flatten(step, steps)),
        None => steps.push(decoder),
    }
}

fn kind(step: &Value) -> &str {
    step["type"].as_str().unwrap_or("nothing")
}

fn unknown(step: &Value) -> TextError {
    TextError::UnknownDecoder { decoder: step.to_string().chars().take(200).collect() }
}

/// `<0x0A>` → 10
fn fallback_byte(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    let hex = digits.len() == 2 && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    hex.then(|| u8::from_str_radix(digits, 16).ok()).flatten()
}

/// GPT-2's byte alphabet: printable Latin-1 characters are themselves, the other bytes follow from
/// U+0100 on, in order.
fn byte_of(char: char) -> Option<u8> {
    let is_itself = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    match u32::from(char) {
        code @ 0..=0xff => u8::try_from(code).ok().filter(|byte| is_itself(*byte)),
        code @ 0x100..=0x143 => {
            (0..=255_u8).filter(|byte| !is_itself(*byte)).nth(usize::try_from(code - 0x100).ok()?)
        }
        _ => None,
    }
}

/// The bytes of every token, by id.
#[derive(Debug)]
pub(crate) struct TokenBytes {
    bytes: Vec<u8>,
    ends: Vec<usize>,
    leading: Leading,
}

impl TokenBytes {
    /// `tokens[id]` is the token's text; `None` for an id that is not used.
    pub(crate) fn new(tokens: &[Option<String>], decoding: &Decoding) -> Self {
        let mut bytes = Vec::new();
        let ends = tokens.iter().map(|token| {
            decoding.bytes_into(token.as_deref().unwrap_or_default(), &mut bytes);
            bytes.len()
        });
        let ends = ends.collect();
        let leading = match decoding {
            Decoding::ByteLevel => Leading::Keep,
            Decoding::Text { leading, .. } => *leading,
        };
        Self { bytes, ends, leading }
    }

    pub(crate) fn len(&self) -> usize {
        self.ends.len()
    }

    /// Empty for an id outside the vocabulary.
    pub(crate) fn get(&self, id: usize) -> &[u8] {
        let start = id.checked_sub(1).map_or(Some(0), |before| self.ends.get(before).copied());
        let range = start.zip(self.ends.get(id).copied());
        range.and_then(|(start, end)| self.bytes.get(start..end)).unwrap_or_default()
    }

    pub(crate) fn leading(&self) -> Leading {
        self.leading
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn table(tokens: &[&str], decoding: &Decoding) -> TokenBytes {
        let tokens: Vec<_> = tokens.iter().map(|token| Some((*token).to_owned())).collect();
        TokenBytes::new(&tokens, decoding)
    }

    #[test]
    fn the_byte_alphabet_names_every_byte_once() {
        let mut bytes: Vec<u8> =
            (0..0x200).filter_map(char::from_u32).filter_map(byte_of).collect();
        bytes.sort_unstable();
        assert_eq!(bytes, (0..=255).collect::<Vec<u8>>());
        assert_eq!(
            (byte_of('Ġ'), byte_of('Ċ'), byte_of('a')),
            (Some(b' '), Some(b'\n'), Some(b'a'))
        );
        assert_eq!(byte_of(' '), None);
    }

    #[test]
    fn byte_level_tokens_are_bytes_and_added_tokens_their_text() {
        let table = table(&["Ġhi", "ðŁ", "<|im_start|>", "two words ¹"], &Decoding::ByteLevel);
        assert_eq!(table.get(0), b" hi");
        assert_eq!(table.get(1), b"\xf0\x9f");
        assert_eq!(table.get(2), b"<|im_start|>");
        assert_eq!(table.get(3), "two words ¹".as_bytes());
        assert_eq!(table.get(4), b"");
    }

    #[test]
    fn sentence_piece_tokens_have_spaces_and_byte_fallback() {
        let table = table(&["▁hi▁x", "<0x0A>", "<0xZZ>", "<0xé>"], &Decoding::sentence_piece(true));
        assert_eq!(table.get(0), b" hi x");
        assert_eq!(table.get(1), b"\n");
        assert_eq!(table.get(2), b"<0xZZ>");
        assert_eq!(table.get(3), "<0xé>".as_bytes());
        assert_eq!(table.leading(), Leading::Strip(1));
    }

    #[test]
    fn decoders_of_tokenizer_json_are_understood_or_refused() {
        let llama = json!({"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0}
        ]});
        assert_eq!(Decoding::from_json(&llama).unwrap(), Decoding::sentence_piece(true));
        let byte_level = json!({"type": "ByteLevel", "add_prefix_space": true});
        assert_eq!(Decoding::from_json(&byte_level).unwrap(), Decoding::ByteLevel);
        let metaspace =
            json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always"});
        let Decoding::Text { leading, .. } = Decoding::from_json(&metaspace).unwrap() else {
            panic!("a metaspace decoder is no byte-level one")
        };
        assert_eq!(leading, Leading::StripFirstToken);
        let message = Decoding::from_json(&json!({"type": "WordPiece"})).unwrap_err().to_string();
        assert!(message.contains("WordPiece"), "{message}");
        assert!(Decoding::from_json(&Value::Null).is_err());
    }

    #[test]
    fn spaces_are_stripped_across_tokens_but_only_at_the_beginning() {
        let mut leading = Leading::Strip(2);
        let mut out = Vec::new();
        for bytes in [b" ".as_slice(), b"", b"  a", b" b"] {
            leading.trim_into(bytes, &mut out);
        }
        assert_eq!(out, b" a b");
    }
}

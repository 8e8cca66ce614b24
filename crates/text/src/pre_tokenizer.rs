//! How each family of byte-level vocabularies splits text before merging: the name in
//! `tokenizer.ggml.pre` in, the rules of its original tokenizer out, in tokenizer.json's form.
//!
//! The wrong rules still give tokens, only other ones than the model was trained on. So a name that
//! is not listed is refused.

use serde_json::{Value, json};

/// What a `pre` name stands for.
pub(crate) struct PreTokenization {
    pub(crate) pre_tokenizer: Value,
    pub(crate) normalizer: Option<Value>,
    /// A word that is a token is that token, also where merges would give others.
    pub(crate) ignore_merges: bool,
    /// Whether a text begins with the bos token when the file does not say.
    pub(crate) add_bos: bool,
}

#[derive(Clone, Copy, PartialEq)]
enum Family {
    Gpt2,
    /// Single digits, then as GPT-2.
    Digits,
    Llama3,
    /// Llama 3's words with its merges in any case.
    Dbrx,
    Qwen2,
    Tekken,
    Gpt4o,
    DeepseekLlm,
    DeepseekCoder,
    DeepseekV3,
}

const FAMILIES: [(Family, &[&str]); 10] = [
    (
        Family::Gpt2,
        &[
            "default",
            "gpt-2",
            "phi-2",
            "mpt",
            "olmo",
            "jina-es",
            "jina-de",
            "jina-v2-es",
            "jina-v2-de",
            "jina-v2-code",
            "roberta-bpe",
            "jais",
            "trillion",
            "granite-docling",
            "gigachat",
            "a.x-4.0",
            "mellum",
            "modern-bert",
            "exaone4",
        ],
    ),
    (
        Family::Digits,
        &["smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"],
    ),
    (
        Family::Llama3,
        &["llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"],
    ),
    (Family::Dbrx, &["dbrx", "smaug-bpe"]),
    (Family::Qwen2, &["qwen2", "deepseek-r1-qwen", "megrez"]),
    (Family::Tekken, &["tekken"]),
    (Family::Gpt4o, &["gpt-4o", "llama4"]),
    (Family::DeepseekLlm, &["deepseek-llm"]),
    (Family::DeepseekCoder, &["deepseek-coder"]),
    (Family::DeepseekV3, &["deepseek-v3"]),
];

const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

const DEEPSEEK_LLM: [&str; 5] = [
    r"[\r\n]",
    r"\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-\x{1F7D}ᾀ-ᾴᾶ-ᾼ\x{1FBE}ῂ-ῄῆ-ῌῐ-\x{1FD3}ῖ-\x{1FDB}ῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤ\x{2126}ℨ\x{212A}-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+",
    r"\s?[!-/:-~！-／：-～‘-‟　-。]+",
    r"\s+$",
    r"[一-龥ࠀ-一가-퟿]+",
];

const DEEPSEEK_CODER: [&str; 4] = [r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", r"[一-龥ࠀ-一가-퟿]+"];

const DEEPSEEK_V3: [&str; 3] = [
    r"\p{N}{1,3}",
    r"[一-龥぀-ゟ゠-ヿ]+",
    r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##,
];

/// Every name that [`pre_tokenization`] knows.
pub(crate) fn supported_names() -> String {
    let names: Vec<&str> = FAMILIES.iter().flat_map(|(_, names)| names.iter().copied()).collect();
    names.join(", ")
}

/// The rules of `pre`; `None` for a name that is not known.
pub(crate) fn pre_tokenization(pre: &str) -> Option<PreTokenization> {
    let (family, _) = FAMILIES.iter().find(|(_, names)| names.contains(&pre))?;
    let steps = match family {
        Family::Gpt2 => vec![byte_level(true)],
        Family::Digits => vec![digits(), byte_level(true)],
        Family::Llama3 | Family::Dbrx => split_by(&[LLAMA3], None),
        Family::Qwen2 => split_by(&[QWEN2], None),
        Family::Tekken => split_by(&[TEKKEN], None),
        Family::Gpt4o => split_by(&[GPT4O], None),
        Family::DeepseekLlm => split_by(&DEEPSEEK_LLM, Some(digits())),
        Family::DeepseekCoder => split_by(&DEEPSEEK_CODER, Some(digits())),
        Family::DeepseekV3 => split_by(&DEEPSEEK_V3, None),
    };
    Some(PreTokenization {
        pre_tokenizer: json!({"type": "Sequence", "pretokenizers": steps}),
        normalizer: (*family == Family::Qwen2).then(|| json!({"type": "NFC"})),
        ignore_merges: matches!(family, Family::Llama3 | Family::Tekken),
        add_bos: matches!(family, Family::Llama3 | Family::Tekken),
    })
}

fn split_by(patterns: &[&str], then: Option<Value>) -> Vec<Value> {
    let split = |pattern: &&str| {
        json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated",
            "invert": false})
    };
    patterns.iter().map(split).chain(then).chain([byte_level(false)]).collect()
}

fn byte_level(use_regex: bool) -> Value {
    json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false,
        "use_regex": use_regex})
}

fn digits() -> Value {
    json!({"type": "Digits", "individual_digits": true})
}

//! The name of a tensor in a PEFT file → the module and which of its parts it is. Methods have words of
//! their own; releases differ in the prefix and in whether the adapter's own name is part of it.
//! Anything else has no meaning here and is refused by name.

use crate::error::Refusal;
use crate::quoted::Quoted;

/// What a tensor is to its module. N and K are the module's outputs and inputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Part {
    /// LoRA and AdaLoRA: `[rank, K]`
    A,
    /// LoRA and AdaLoRA: `[N, rank]`
    B,
    /// LoRA: `[N]`
    BBias,
    /// LoRA: `[rank, vocab]`
    EmbeddingA,
    /// LoRA: `[hidden, rank]`
    EmbeddingB,
    /// DoRA: `[N]`
    Magnitude,
    /// AdaLoRA: `[rank, 1]`
    E,
    /// AdaLoRA: `[1]`
    RankNum,
    /// VeRA, of no module: `[rank, largest K]`
    SharedA,
    /// VeRA, of no module: `[largest N, rank]`
    SharedB,
    /// VeRA: `[rank]`
    LambdaD,
    /// VeRA: `[N]`
    LambdaB,
    /// IA3: `[N, 1]` or `[1, K]`
    Scale,
    /// LoHa and LoKr: matrices of the first factor of a product of two.
    First(Factor),
    /// Of the second.
    Second(Factor),
    /// Rows of an embedding or head: `[tokens, hidden]`
    TokenRows,
    /// The bias of the base, trained: `[N]`
    Bias,
    /// The weight of the base, trained.
    Weight,
    /// The base's own weight, which PEFT saves beside an adapter of the embedding or the head.
    /// Training leaves it as it was.
    BaseCopy,
}

/// A factor as a whole, or itself a product of two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Factor {
    Whole,
    Left,
    Right,
}

/// A name taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TensorName<'a> {
    /// As in `modules`, e.g. `model.layers.0.self_attn.q_proj`.
    pub(crate) module: &'a str,
    pub(crate) part: Part,
    /// The adapter's name in the file of a release that wrote it.
    pub(crate) adapter: Option<&'a str>,
}

/// What closes a name: the tensors of modules have one, bare parameters have not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    Weight,
    Bias,
    Nothing,
}
use Ending::{Bias, Nothing, Weight};

/// How a method calls a part.
pub(crate) type Word = (&'static str, Ending, Part);

/// LoRA; DoRA's magnitude is saved as a parameter by most releases and as a module by some.
pub(crate) const LORA: &[Word] = &[
    ("lora_A", Weight, Part::A),
    ("lora_B", Weight, Part::B),
    ("lora_B", Bias, Part::BBias),
    ("lora_embedding_A", Nothing, Part::EmbeddingA),
    ("lora_embedding_B", Nothing, Part::EmbeddingB),
    ("lora_magnitude_vector", Nothing, Part::Magnitude),
    ("lora_magnitude_vector", Weight, Part::Magnitude),
];

pub(crate) const ADALORA: &[Word] = &[
    ("lora_A", Nothing, Part::A),
    ("lora_B", Nothing, Part::B),
    ("lora_E", Nothing, Part::E),
    ("ranknum", Nothing, Part::RankNum),
];

/// The module of what all modules of an adapter share.
pub(crate) const SHARED: &str = "base_model";

pub(crate) const VERA: &[Word] = &[
    ("vera_A", Nothing, Part::SharedA),
    ("vera_B", Nothing, Part::SharedB),
    ("vera_lambda_d", Nothing, Part::LambdaD),
    ("vera_lambda_b", Nothing, Part::LambdaB),
];

pub(crate) const IA3: &[Word] = &[("ia3_l", Nothing, Part::Scale)];

pub(crate) const LOHA: &[Word] = &[
    ("hada_w1_a", Nothing, Part::First(Factor::Left)),
    ("hada_w1_b", Nothing, Part::First(Factor::Right)),
    ("hada_w2_a", Nothing, Part::Second(Factor::Left)),
    ("hada_w2_b", Nothing, Part::Second(Factor::Right)),
];

pub(crate) const LOKR: &[Word] = &[
    ("lokr_w1", Nothing, Part::First(Factor::Whole)),
    ("lokr_w1_a", Nothing, Part::First(Factor::Left)),
    ("lokr_w1_b", Nothing, Part::First(Factor::Right)),
    ("lokr_w2", Nothing, Part::Second(Factor::Whole)),
    ("lokr_w2_a", Nothing, Part::Second(Factor::Left)),
    ("lokr_w2_b", Nothing, Part::Second(Factor::Right)),
];

/// Parts that any adapter may have beside those of its method.
const COMMON: &[Word] = &[
    ("token_adapter.trainable_tokens_delta", Nothing, Part::TokenRows),
    ("trainable_tokens_delta", Nothing, Part::TokenRows),
    ("base_layer", Weight, Part::BaseCopy),
    ("base_layer", Bias, Part::Bias),
];

/// Parts of names that belong to something known, with its sentence.
const KNOWN_STRANGERS: [(&str, &str); 12] = [
    (".modules_to_save.", "fully trained modules are read under the name of their module"),
    (".original_module.", "it is a copy of the base's"),
    (".trainable_tokens_", "trained token embeddings of that name are not known"),
    ("lora_", "it is LoRA's, and peft_type or a key of adapter_config.json says otherwise"),
    (".ranknum", "it is AdaLoRA's, and peft_type says otherwise"),
    ("vera_", "it is VeRA's, and peft_type says otherwise"),
    (".ia3_", "it is IA3's, and peft_type says otherwise"),
    (".hada_", "it is LoHa's, and peft_type says otherwise"),
    (".lokr_", "it is LoKr's, and peft_type says otherwise"),
    ("prompt_embeddings", "it is a prompt's, and peft_type says otherwise"),
    (".bias", "biases of that name are not known"),
    (".weight", "full weights are read of embed_tokens and lm_head only"),
];

/// Takes a name apart, in a file of the method that has these words.
pub(crate) fn tensor_name<'a>(name: &'a str, words: &[Word]) -> Result<TensorName<'a>, Refusal> {
    let short = name.strip_prefix("base_model.model.").unwrap_or(name);
    split(short, words).ok_or_else(|| stranger(name))
}

/// The sentence about a tensor that nothing asked for.
pub(crate) fn stranger(name: &str) -> Refusal {
    let why = KNOWN_STRANGERS.iter().find(|(part, _)| name.contains(part));
    match why {
        Some((_, why)) => Refusal::new(format!("holds tensor {}, but {why}", Quoted(name))),
        None => Refusal::new(format!("holds tensor {}, which no rule explains", Quoted(name))),
    }
}

fn split<'a>(name: &'a str, words: &[Word]) -> Option<TensorName<'a>> {
    let (body, ending) = match (name.strip_suffix(".weight"), name.strip_suffix(".bias")) {
        (Some(body), _) => (body, Weight),
        (_, Some(body)) => (body, Bias),
        (None, None) => (name, Nothing),
    };
    let find = |body: &'a str| {
        let mut known = words.iter().chain(COMMON).filter(|(_, end, _)| *end == ending);
        known.find_map(|(word, _, part)| {
            let module = body.strip_suffix(word)?.strip_suffix('.')?;
            Some((module, *part))
        })
    };
    if let Some((module, part)) = find(body) {
        return Some(TensorName { module, part, adapter: None });
    }
    if let Some((head, adapter)) = body.rsplit_once('.')
        && let Some((module, part)) = find(head)
    {
        return Some(TensorName { module, part, adapter: Some(adapter) });
    }
    // What is left is the base's own.
    let part = match ending {
        Weight => Part::Weight,
        Bias => Part::Bias,
        Nothing => return None,
    };
    let is_of_adapter = words.iter().any(|(word, ..)| body.ends_with(word));
    (!is_of_adapter).then_some(TensorName { module: body, part, adapter: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_of_a_matrix_is_understood() {
        let q = "model.layers.0.self_attn.q_proj";
        let cases = [
            (format!("base_model.model.{q}.lora_A.weight"), LORA, q, Part::A, None),
            (format!("{q}.lora_B.weight"), LORA, q, Part::B, None),
            (format!("{q}.lora_B.bias"), LORA, q, Part::BBias, None),
            (
                format!("base_model.model.{q}.lora_A.default.weight"),
                LORA,
                q,
                Part::A,
                Some("default"),
            ),
            (
                "base_model.model.lm_head.lora_B.x.weight".into(),
                LORA,
                "lm_head",
                Part::B,
                Some("x"),
            ),
            ("lm_head.base_layer.weight".into(), LORA, "lm_head", Part::BaseCopy, None),
            ("lm_head.weight".into(), LORA, "lm_head", Part::Weight, None),
            (format!("{q}.base_layer.bias"), LORA, q, Part::Bias, None),
            (format!("{q}.bias"), LORA, q, Part::Bias, None),
            (format!("{q}.lora_magnitude_vector"), LORA, q, Part::Magnitude, None),
            (format!("{q}.lora_magnitude_vector.weight"), LORA, q, Part::Magnitude, None),
            ("e.lora_embedding_A".into(), LORA, "e", Part::EmbeddingA, None),
            ("e.lora_embedding_B.default".into(), LORA, "e", Part::EmbeddingB, Some("default")),
            ("e.token_adapter.trainable_tokens_delta".into(), LORA, "e", Part::TokenRows, None),
            ("e.trainable_tokens_delta".into(), &[], "e", Part::TokenRows, None),
            (format!("{q}.lora_A"), ADALORA, q, Part::A, None),
            (format!("{q}.lora_E.default"), ADALORA, q, Part::E, Some("default")),
            ("base_model.vera_A".into(), VERA, SHARED, Part::SharedA, None),
            (format!("{q}.vera_lambda_b"), VERA, q, Part::LambdaB, None),
            (format!("{q}.ia3_l"), IA3, q, Part::Scale, None),
            (format!("{q}.hada_w2_a"), LOHA, q, Part::Second(Factor::Left), None),
            (format!("{q}.lokr_w1"), LOKR, q, Part::First(Factor::Whole), None),
            (format!("{q}.lokr_w1_b"), LOKR, q, Part::First(Factor::Right), None),
        ];
        for (name, words, module, part, adapter) in cases {
            let expected = TensorName { module, part, adapter };
            assert_eq!(tensor_name(&name, words), Ok(expected), "{name}");
        }
    }

    #[test]
    fn strangers_are_refused_with_what_they_are() {
        let cases = [
            ("m.q_proj.lora_E", "LoRA"),
            ("m.q_proj.lora_A", "LoRA"),
            ("m.lora_embedding_A.weight", "LoRA"),
            ("m.q_proj.ranknum", "AdaLoRA"),
            ("m.q_proj.vera_lambda_d", "VeRA"),
            ("m.q_proj.ia3_l", "IA3"),
            ("prompt_embeddings", "prompt"),
            ("m.q_proj.lokr_w1", "LoKr"),
            ("m.q_proj", "no rule"),
            ("", "no rule"),
        ];
        for (name, words) in cases {
            let message = tensor_name(name, LORA).unwrap_err().to_string();
            assert!(message.contains(words), "{name}: {message}");
        }
    }
}

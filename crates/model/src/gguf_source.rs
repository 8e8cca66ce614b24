//! Tensors of a GGUF file, kept in their quantization.

use crate::config::ModelConfig;
use crate::error::ModelError;
use crate::ggml_blocks::{Codes, format_of};
use crate::gguf_config;
use crate::load::WeightSource;
use std::path::Path;
use weft_gguf::{GgmlType, GgufFile, TensorInfo};
use weft_kernels::PackedLinear;
use weft_kernels::pack::{Packer, QuantizedRow};
use weft_types::LinearShape;

pub(crate) struct GgufSource {
    file: GgufFile,
    config: ModelConfig,
}

impl GgufSource {
    pub(crate) fn open(path: &Path) -> Result<Self, ModelError> {
        let file = GgufFile::open(path)?;
        let config = gguf_config::parse(&file)?;
        Ok(Self { file, config })
    }

    fn find(
        &self,
        name: &str,
        shape: &[usize],
    ) -> Result<Option<(&TensorInfo, &[u8])>, ModelError> {
        let Some((info, bytes)) = self.file.tensor(name) else { return Ok(None) };
        if info.shape != shape {
            return Err(ModelError::Invalid(format!(
                "GGUF tensor {name} has shape {:?}, but the metadata makes it {shape:?}",
                info.shape
            )));
        }
        Ok(Some((info, bytes)))
    }

    /// The row of the file that holds row `row` of the Hugging Face layout.
    ///
    /// GGUF's llama architecture interleaves the two halves of each rotated head of q and k, for
    /// its own pairing. Adapters are trained on the Hugging Face layout, so that one is served.
    fn source_row(&self, name: &str, row: usize) -> usize {
        let is_rotated = name.ends_with(".q_proj") || name.ends_with(".k_proj");
        if self.config.architecture != "llama" || !is_rotated {
            return row;
        }
        let head_dim = self.config.spec.head_dim;
        let (head, i) = (row / head_dim, row % head_dim);
        let half = head_dim / 2;
        head * head_dim + 2 * (i % half) + i / half
    }
}

impl WeightSource for GgufSource {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn describe(&self) -> String {
        "GGUF".to_owned()
    }

    fn has(&self, name: &str) -> bool {
        self.file.tensor(&gguf_name(name)).is_some()
    }

    fn linear(&self, name: &str, shape: LinearShape) -> Result<PackedLinear, ModelError> {
        let LinearShape { num_inputs, num_outputs } = shape;
        let gguf_name = gguf_name(&format!("{name}.weight"));
        let (info, bytes) =
            self.find(&gguf_name, &[num_inputs, num_outputs])?.ok_or_else(|| {
                ModelError::Invalid(format!("the GGUF file has no tensor {gguf_name}"))
            })?;
        let format = format_of(info.dtype).ok_or_else(|| unreadable(&gguf_name, info.dtype))?;
        let row_bytes = bytes.len() / num_outputs;
        let mut packer = Packer::new(format, num_outputs, num_inputs);
        let (mut codes, mut values) = (Codes::default(), Vec::new());
        for row in 0..num_outputs {
            let source = &bytes[self.source_row(name, row) * row_bytes..][..row_bytes];
            if format.is_integer() {
                codes.decode(info.dtype, source);
                let Codes { codes, scales, mins } = &codes;
                packer.set_quantized(row, QuantizedRow { codes, scales, mins });
            } else {
                values.clear();
                read_floats(info.dtype, source, &mut values);
                packer.set_float(row, &values);
            }
        }
        Ok(packer.finish())
    }

    fn vector(&self, name: &str, len: usize) -> Result<Option<Vec<f32>>, ModelError> {
        let gguf_name = gguf_name(name);
        let Some((info, bytes)) = self.find(&gguf_name, &[len])? else { return Ok(None) };
        if !matches!(info.dtype, GgmlType::F32 | GgmlType::F16 | GgmlType::BF16) {
            return Err(unreadable(&gguf_name, info.dtype));
        }
        let mut values = Vec::with_capacity(len);
        read_floats(info.dtype, bytes, &mut values);
        if let Some(linear) = name.strip_suffix(".bias") {
            values = (0..len).map(|row| values[self.source_row(linear, row)]).collect();
        }
        Ok(Some(values))
    }
}

fn unreadable(name: &str, dtype: GgmlType) -> ModelError {
    ModelError::Unsupported(format!(
        "GGUF tensor {name} has type {dtype:?}, which is not read; F32, F16, BF16, Q4_0, Q4_1, \
         Q5_0, Q5_1, Q8_0, Q4_K, Q5_K and Q6_K are (vectors: floats only)"
    ))
}

fn read_floats(dtype: GgmlType, bytes: &[u8], out: &mut Vec<f32>) {
    match dtype {
        GgmlType::F16 => out.extend(
            bytes.as_chunks::<2>().0.iter().map(|&bytes| half::f16::from_le_bytes(bytes).to_f32()),
        ),
        GgmlType::BF16 => out.extend(
            bytes.as_chunks::<2>().0.iter().map(|&bytes| half::bf16::from_le_bytes(bytes).to_f32()),
        ),
        _ => out.extend(bytes.as_chunks::<4>().0.iter().map(|&bytes| f32::from_le_bytes(bytes))),
    }
}

/// `model.layers.3.self_attn.q_proj.weight` → `blk.3.attn_q.weight`
fn gguf_name(name: &str) -> String {
    const PARTS: [(&str, &str); 15] = [
        ("model.layers.", "blk."),
        ("model.embed_tokens.", "token_embd."),
        ("model.norm.", "output_norm."),
        ("lm_head.", "output."),
        ("self_attn.q_proj.", "attn_q."),
        ("self_attn.k_proj.", "attn_k."),
        ("self_attn.v_proj.", "attn_v."),
        ("self_attn.o_proj.", "attn_output."),
        ("self_attn.q_norm.", "attn_q_norm."),
        ("self_attn.k_norm.", "attn_k_norm."),
        ("mlp.gate_proj.", "ffn_gate."),
        ("mlp.up_proj.", "ffn_up."),
        ("mlp.down_proj.", "ffn_down."),
        ("input_layernorm.", "attn_norm."),
        ("post_attention_layernorm.", "ffn_norm."),
    ];
    PARTS.iter().fold(name.to_owned(), |name, (hf, gguf)| name.replace(hf, gguf))
}

#[cfg(test)]
mod tests {
    use super::gguf_name;

    #[test]
    fn names_translate() {
        for (hf, gguf) in [
            ("model.layers.12.self_attn.q_proj.bias", "blk.12.attn_q.bias"),
            ("model.layers.0.post_attention_layernorm.weight", "blk.0.ffn_norm.weight"),
            ("model.embed_tokens.weight", "token_embd.weight"),
            ("model.norm.weight", "output_norm.weight"),
            ("lm_head.weight", "output.weight"),
        ] {
            assert_eq!(gguf_name(hf), gguf);
        }
    }
}

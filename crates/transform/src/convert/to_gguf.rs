//! PEFT → a llama.cpp adapter. In: a PEFT directory and its base's configuration. Out: a GGUF file with
//! `general.type` "adapter". llama.cpp knows one alpha for all modules; a module whose scale is not
//! alpha / rank gets the rest multiplied into B, in single precision.

use super::gguf_names::{gguf_stem, interleaved_row, is_interleaved};
use super::{ConvertReport, Form};
use crate::error::{Result, TransformError, at, refuse};
use crate::factors::{Weight, low_rank_parts, read_lowered};
use crate::matrix::{Matrix, encode, of_tensor};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use weft_gguf::{GgmlType, GgufWriter};
use weft_model::ModelConfig;
use weft_types::{AdapterTensor, Dtype, EmbeddingUpdate, LowRankUpdate, LoweredAdapter, Site};

/// Below this, two scales differ by rounding only.
const SAME: f64 = 1e-6;

/// One weight's matrices, each `cols × rows` of its shape in the file.
struct Pair {
    weight: Weight,
    /// `[r, K]`; of the embedding `[vocab, r]`.
    a: (Matrix, Dtype),
    /// `[N, r]`
    b: (Matrix, Dtype),
    rank: usize,
    scale: f64,
}

pub(super) fn convert(input: &Path, base: &ModelConfig, out: &Path) -> Result<ConvertReport> {
    if out.exists() {
        return refuse(format!("{} exists already; name another file", out.display()));
    }
    let architecture = match base.architecture.as_str() {
        "mistral" => "llama",
        other => other,
    };
    let pairs = pairs(read_lowered(input, &base.spec)?)?;
    let alpha = pairs.first().map_or(0.0, |pair| pair.scale * pair.rank as f64) as f32;
    let mut writer = GgufWriter::new()
        .str("general.architecture", architecture)
        .str("general.type", "adapter")
        .str("adapter.type", "lora")
        .f32("adapter.lora.alpha", alpha);
    let (mut num_tensors, mut num_bytes) = (0, 0);
    for pair in pairs {
        let weight = pair.weight;
        if weight == Weight::Linear(Site::LmHead) && base.spec.tied_embeddings {
            return refuse(
                "the adapter changes lm_head, which is the embedding in this base; llama.cpp has no \
                 tensor of its own for it",
            );
        }
        for (part, (matrix, dtype)) in scaled(pair, alpha, architecture, base.spec.head_dim) {
            let name = format!("{}.weight.{part}", gguf_stem(weight));
            let bytes = encode(matrix.as_slice(), dtype).map_err(|value| {
                TransformError::Refused(format!("{name} would have the value {value:e}"))
            })?;
            let (shape, ggml_type) = ([matrix.nrows(), matrix.ncols()], ggml_type(dtype));
            writer = writer.tensor(&name, &shape, ggml_type, &bytes)?;
            num_tensors += 1;
            num_bytes += bytes.len();
        }
    }
    write(&writer, out)?;
    let (from, to) = (Form::Peft, Form::Gguf);
    Ok(ConvertReport { from, to, num_tensors, num_bytes, is_checked: true })
}

fn pairs(lowered: LoweredAdapter) -> Result<Vec<Pair>> {
    let (low_rank, embedding) = low_rank_parts(lowered)?;
    let mut pairs = Vec::new();
    let with_dtype = |tensor: &AdapterTensor| (of_tensor(tensor), tensor.dtype);
    for LowRankUpdate { site, scale, a, b } in low_rank {
        let (b_transposed, dtype) = with_dtype(&b);
        pairs.push(Pair {
            weight: Weight::Linear(site),
            rank: a.rows,
            a: with_dtype(&a),
            b: (b_transposed.transpose(), dtype),
            scale: scale.into(),
        });
    }
    if let Some(EmbeddingUpdate { scale, a, b }) = embedding {
        let (b_transposed, dtype) = with_dtype(&b);
        pairs.push(Pair {
            weight: Weight::Embedding,
            rank: b.rows,
            a: with_dtype(&a),
            b: (b_transposed.transpose(), dtype),
            scale: scale.into(),
        });
    }
    Ok(pairs)
}

/// Both matrices as they are written: what alpha does not say is in B, whose rows have llama.cpp's order.
fn scaled(
    pair: Pair,
    alpha: f32,
    architecture: &str,
    head_dim: usize,
) -> [(&'static str, (Matrix, Dtype)); 2] {
    let Pair { weight, a, b: (mut b, mut dtype), rank, scale } = pair;
    // llama.cpp takes alpha 0 as a scale of one.
    let said = if alpha == 0.0 { 1.0 } else { f64::from(alpha) / rank as f64 };
    if (scale - said).abs() > SAME * said.abs() {
        b *= scale / said;
        dtype = Dtype::F32;
    }
    if is_interleaved(weight, architecture) {
        let mut ordered = b.clone();
        for row in 0..b.ncols() {
            ordered.set_column(interleaved_row(row, head_dim), &b.column(row));
        }
        b = ordered;
    }
    [("lora_a", a), ("lora_b", (b, dtype))]
}

fn ggml_type(dtype: Dtype) -> GgmlType {
    match dtype {
        Dtype::F16 => GgmlType::F16,
        Dtype::Bf16 => GgmlType::BF16,
        Dtype::F32 | Dtype::I8 => GgmlType::F32,
    }
}

/// Written beside its place, then renamed.
fn write(writer: &GgufWriter, out: &Path) -> Result<()> {
    let partial = out.with_extension("gguf.partial");
    let written = File::create(&partial).and_then(|file| {
        let mut file = BufWriter::new(file);
        writer.write_to(&mut file)?;
        file.flush()
    });
    let renamed = written.and_then(|()| std::fs::rename(&partial, out));
    renamed.map_err(|cause| {
        // It may not even be there.
        let _ = std::fs::remove_file(&partial);
        at(out)(cause)
    })
}

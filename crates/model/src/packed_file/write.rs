//! Writes what [`PackedFile`](super::PackedFile) reads. In: weights. Out: bytes, in one pass; the header
//! comes last, so that what was not finished is no such file.

use super::{ALIGNMENT, Contents, Header, Linear, Piece};
use crate::weights::{LayerWeights, LinearWeights, ModelWeights};
use std::io::{self, Seek, SeekFrom, Write};
use weft_kernels::PackedLinear;
use weft_types::{Module, Site};

/// Bytes that are hashed and written at once: other threads come in between.
const STEP: usize = 1 << 20;

/// Writes all of `weights`. Returns the number of bytes.
pub(crate) fn write(
    weights: &ModelWeights<PackedLinear>,
    identity: &str,
    out: &mut (impl Write + Seek),
) -> io::Result<u64> {
    let contents = Contents { identity: identity.to_owned(), ..Contents::default() };
    let mut writer = Writer { out, position: 0, contents };
    writer.write_all(&[0; ALIGNMENT])?;
    writer.weights(weights)?;
    let contents = serde_json::to_vec(&writer.contents)?;
    let header = Header {
        contents_offset: writer.position,
        contents_bytes: contents.len() as u64,
        contents_hash: *blake3::hash(&contents).as_bytes(),
    };
    writer.write_all(&contents)?;
    let num_bytes = writer.position;
    writer.out.seek(SeekFrom::Start(0))?;
    writer.out.write_all(&header.to_bytes())?;
    Ok(num_bytes)
}

struct Writer<'a, W> {
    out: &'a mut W,
    position: u64,
    contents: Contents,
}

impl<W: Write> Writer<'_, W> {
    /// Every field is named: what a layer gets later on is not forgotten here.
    fn weights(&mut self, weights: &ModelWeights<PackedLinear>) -> io::Result<()> {
        let ModelWeights { embedding, layers, final_norm, lm_head } = weights;
        self.linear("model.embed_tokens", embedding)?;
        self.vector("model.norm.weight", final_norm)?;
        if let Some(lm_head) = lm_head {
            self.linear("lm_head", lm_head)?;
        }
        for (index, layer) in layers.iter().enumerate() {
            self.layer(index, layer)?;
        }
        Ok(())
    }

    fn layer(&mut self, index: usize, layer: &LayerWeights<PackedLinear>) -> io::Result<()> {
        let LayerWeights { attention_norm, mlp_norm, q_norm, k_norm, q, k, v, o, gate, up, down } =
            layer;
        let norms = [
            ("input_layernorm", Some(attention_norm)),
            ("post_attention_layernorm", Some(mlp_norm)),
            ("self_attn.q_norm", q_norm.as_ref()),
            ("self_attn.k_norm", k_norm.as_ref()),
        ];
        for (name, norm) in norms {
            if let Some(norm) = norm {
                self.vector(&format!("model.layers.{index}.{name}.weight"), norm)?;
            }
        }
        let linears = [
            (Module::Q, q),
            (Module::K, k),
            (Module::V, v),
            (Module::O, o),
            (Module::Gate, gate),
            (Module::Up, up),
            (Module::Down, down),
        ];
        for (module, LinearWeights { weight, bias }) in linears {
            let name = Site::Layer { layer: index as u32, module }.hf_name();
            self.linear(&name, weight)?;
            if let Some(bias) = bias {
                self.vector(&format!("{name}.bias"), bias)?;
            }
        }
        Ok(())
    }

    fn linear(&mut self, name: &str, linear: &PackedLinear) -> io::Result<()> {
        let data = self.piece(linear.as_bytes())?;
        let order = linear.order().map(|order| {
            let bytes: Vec<u8> = order.iter().flat_map(|input| input.to_le_bytes()).collect();
            self.piece(&bytes)
        });
        let entry = Linear {
            format: linear.format(),
            num_outputs: linear.num_outputs(),
            num_inputs: linear.num_inputs(),
            data,
            order: order.transpose()?,
        };
        self.contents.linears.insert(name.to_owned(), entry);
        Ok(())
    }

    fn vector(&mut self, name: &str, values: &[f32]) -> io::Result<()> {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let piece = self.piece(&bytes)?;
        self.contents.vectors.insert(name.to_owned(), piece);
        Ok(())
    }

    fn piece(&mut self, bytes: &[u8]) -> io::Result<Piece> {
        let offset = self.position;
        let mut hash = blake3::Hasher::new();
        for part in bytes.chunks(STEP) {
            hash.update(part);
            self.write_all(part)?;
        }
        let rest = bytes.len().next_multiple_of(ALIGNMENT) - bytes.len();
        self.write_all(&[0; ALIGNMENT][..rest])?;
        let blake3 = hash.finalize().to_hex().to_string();
        Ok(Piece { offset, num_bytes: bytes.len() as u64, blake3 })
    }

    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.position += bytes.len() as u64;
        self.out.write_all(bytes)
    }
}

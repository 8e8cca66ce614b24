//! Adapters of other forms ↔ PEFT directories. In: `adapter_model.bin`, NeMo's archives, llama.cpp's GGUF
//! adapters. Out: a PEFT directory; or the other way, a GGUF adapter. What a form says that the other
//! cannot say is refused. Nothing of a pickle is executed.

mod from_gguf;
mod gguf_names;
mod nemo;
mod pickle;
#[cfg(test)]
mod tests;
mod to_gguf;
mod torch_file;

use crate::error::{Result, at, refuse};
use crate::factors::{Weight, read_lowered};
use crate::peft_dir::{FileTensor, write_files};
use crate::staging::Staging;
use serde::Serialize;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::path::Path;
use weft_model::ModelConfig;

/// What the file of a pickled adapter is called, now and in older releases.
const PICKLES: [&str; 3] = ["adapter_model.bin", "adapter_model.pt", "pytorch_model.bin"];

/// A form of adapters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Form {
    /// `adapter_config.json` and `adapter_model.safetensors`.
    Peft,
    /// `adapter_config.json` and `adapter_model.bin`, PyTorch's pickle in a zip archive.
    PeftPickle,
    /// A `.nemo` archive or what was unpacked from one.
    Nemo,
    /// A GGUF file with `general.type` "adapter".
    Gguf,
}

/// What became of it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ConvertReport {
    /// What it was.
    pub from: Form,
    /// What it is.
    pub to: Form,
    /// Tensors that were written.
    pub num_tensors: usize,
    /// Bytes of them.
    pub num_bytes: usize,
    /// Whether the result was loaded for the base that was given.
    pub is_checked: bool,
}

/// Configuration and tensors of a PEFT directory.
struct PeftFiles {
    config: Map<String, Value>,
    tensors: BTreeMap<String, FileTensor>,
}

/// Converts `input` to `out`, which must not exist: a GGUF file if its name ends so, else a PEFT
/// directory. `base` is needed for GGUF of Llama's architecture, whose rows have another order; with it,
/// what was converted is loaded to see that it fits.
///
/// # Errors
/// A sentence about what is malformed, or said by `input` and not by the other form.
pub fn convert(input: &Path, base: Option<&ModelConfig>, out: &Path) -> Result<ConvertReport> {
    let from = detect(input)?;
    let to_gguf = out.extension().is_some_and(|ending| ending == "gguf");
    if to_gguf {
        return match (from, base) {
            (Form::Peft, Some(base)) => to_gguf::convert(input, base, out),
            (Form::Peft, None) => refuse(
                "a GGUF adapter has the order of rows of its base's architecture; name the base with \
                 --base",
            ),
            (Form::Gguf, _) => refuse(format!("{} is a GGUF adapter already", input.display())),
            _ => refuse(format!(
                "{} is no PEFT directory with safetensors; convert it to one first",
                input.display()
            )),
        };
    }
    let files = match from {
        Form::Peft => {
            return refuse(format!(
                "{} is a PEFT directory with safetensors already; name an output that ends with .gguf \
                 to make a GGUF adapter of it",
                input.display()
            ));
        }
        Form::PeftPickle => peft_pickle(input)?,
        Form::Nemo => nemo::read(input)?,
        Form::Gguf => from_gguf::read(input, base)?,
    };
    let staging = Staging::new(out)?;
    write_files(staging.path(), &files.config, &files.tensors)?;
    if let Some(base) = base {
        read_lowered(staging.path(), &base.spec)?;
    }
    staging.publish()?;
    let num_bytes = files.tensors.values().map(|tensor| tensor.data.len()).sum();
    let num_tensors = files.tensors.len();
    Ok(ConvertReport { from, to: Form::Peft, num_tensors, num_bytes, is_checked: base.is_some() })
}

/// What lies at `path`.
///
/// # Errors
/// If it is none of the forms.
pub fn detect(path: &Path) -> Result<Form> {
    if path.is_dir() {
        let has = |name: &str| path.join(name).is_file();
        return match () {
            () if has("adapter_model.safetensors") => Ok(Form::Peft),
            () if PICKLES.iter().any(|name| has(name)) => Ok(Form::PeftPickle),
            () if has("model_config.yaml") => Ok(Form::Nemo),
            () => refuse(format!(
                "{} holds none of adapter_model.safetensors, adapter_model.bin and model_config.yaml",
                path.display()
            )),
        };
    }
    let mut start = [0; 512];
    let mut file = File::open(path).map_err(at(path))?;
    let num_read = read_up_to(&mut file, &mut start).map_err(at(path))?;
    let start = &start[..num_read];
    let is_tar = start.get(257..262) == Some(b"ustar");
    if start.starts_with(b"GGUF") {
        Ok(Form::Gguf)
    } else if is_tar {
        Ok(Form::Nemo)
    } else if start.starts_with(&[0x1f, 0x8b]) {
        refuse(format!("{} is compressed with gzip; unpack it with gunzip first", path.display()))
    } else if start.starts_with(b"PK") {
        refuse(format!(
            "{} is one file of an adapter; name its directory, which also has adapter_config.json",
            path.display()
        ))
    } else {
        refuse(format!(
            "{} is none of a PEFT directory, a .nemo archive and a GGUF adapter",
            path.display()
        ))
    }
}

fn read_up_to(file: &mut File, buffer: &mut [u8]) -> std::io::Result<usize> {
    let mut num_read = 0;
    while num_read < buffer.len() {
        match file.read(&mut buffer[num_read..])? {
            0 => break,
            more => num_read += more,
        }
    }
    Ok(num_read)
}

/// The configuration as it is; the tensors under their names.
fn peft_pickle(dir: &Path) -> Result<PeftFiles> {
    let path = dir.join("adapter_config.json");
    let config = fs::read(&path).map_err(at(&path))?;
    let config = match serde_json::from_slice(&config) {
        Ok(config) => config,
        Err(cause) => return refuse(format!("{} is no JSON object: {cause}", path.display())),
    };
    let name = PICKLES.into_iter().find(|name| dir.join(name).is_file()).unwrap_or(PICKLES[0]);
    let tensors = torch_file::read(&dir.join(name))?;
    Ok(PeftFiles { config, tensors })
}

/// PEFT's names of A and B of a weight.
fn peft_names(weight: Weight) -> [String; 2] {
    let stem = format!("base_model.model.{}", weight.key());
    match weight {
        Weight::Linear(_) => [format!("{stem}.lora_A.weight"), format!("{stem}.lora_B.weight")],
        Weight::Embedding => {
            [format!("{stem}.lora_embedding_A"), format!("{stem}.lora_embedding_B")]
        }
    }
}

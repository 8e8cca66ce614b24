//! A checkpoint → [`LoadedModel`].

use crate::config::ModelConfig;
use crate::error::ModelError;
use crate::gguf_source::GgufSource;
use crate::hf_source::HfSource;
use crate::packed_file::PackedFile;
use crate::weight_cache::WeightCache;
use crate::weights::{LayerWeights, LinearWeights, ModelWeights};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use weft_kernels::PackedLinear;
use weft_kernels::weight::Format;
use weft_types::{BaseModelSpec, LinearShape, Module, Site};

/// What to do with float weights of a Hugging Face checkpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Quantize {
    /// Keep the checkpoint's dtype.
    #[default]
    None,
    /// Eight bits, groups of 32.
    Int8,
    /// Four bits, groups of 32; embedding and output head eight.
    Int4,
    /// As bitsandbytes makes it: four bits of its table, blocks of 64; embedding and output head stay.
    Nf4,
    /// The same with double quantization, QLoRA's default.
    Nf4DoubleQuant,
}

impl std::fmt::Display for Quantize {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Int8 => "int8",
            Self::Int4 => "int4",
            Self::Nf4 => "nf4",
            Self::Nf4DoubleQuant => "nf4-dq",
        })
    }
}

/// Tells how many of how many layers are loaded.
pub type Progress = dyn Fn(usize, usize) + Send + Sync;

/// How to load.
#[derive(Clone, Default)]
pub struct LoadOptions {
    /// Applies to float checkpoints; a GGUF file stays as it is, a quantized checkpoint is refused.
    pub quantize: Quantize,
    /// Threads that convert weights; 0 is one per core.
    pub num_threads: usize,
    /// Packed weights of earlier loads; `None` packs anew and keeps nothing.
    pub cache: Option<WeightCache>,
    /// Called after each layer.
    pub on_progress: Option<Arc<Progress>>,
}

impl std::fmt::Debug for LoadOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LoadOptions")
            .field("quantize", &self.quantize)
            .field("cache", &self.cache)
            .finish_non_exhaustive()
    }
}

/// A model in memory, packed for the CPU.
#[derive(Clone, Debug)]
pub struct LoadedModel {
    /// What it is.
    pub config: ModelConfig,
    /// How its weights were made, for people: `GPTQ, 4 bits, groups of 128`.
    pub origin: String,
    /// Shared by whoever runs it.
    pub weights: Arc<ModelWeights<PackedLinear>>,
}

impl LoadedModel {
    /// Loads a `.gguf` file or a Hugging Face directory: weights that the cache holds are mapped, others
    /// packed, and then kept there by a thread in the background.
    ///
    /// # Errors
    /// A sentence about what is missing, malformed or not served.
    pub fn load(path: &Path, options: &LoadOptions) -> Result<Self, ModelError> {
        let source = open(path, options.quantize)?;
        let entry = options.cache.as_ref().and_then(|cache| cache.entry(path, options.quantize));
        let Some(entry) = entry else { return Self::assemble(&*source, options) };
        if let Some(file) = entry.open() {
            let config = source.config().clone();
            let packed = PackedSource { config, origin: source.describe(), file };
            match Self::assemble(&packed, options) {
                Ok(model) => return Ok(model),
                Err(error) => entry.refuse::<()>(&error),
            };
        }
        let model = Self::assemble(&*source, options)?;
        entry.write_in_background(&model.weights);
        Ok(model)
    }

    /// What the model at `path` is, without its weights.
    ///
    /// # Errors
    /// As [`Self::load`], but for what only the weights say.
    pub fn read_config(path: &Path) -> Result<ModelConfig, ModelError> {
        if path.is_dir() {
            ModelConfig::read(path)
        } else if path.is_file() {
            Ok(GgufSource::open(path)?.config().clone())
        } else {
            Err(ModelError::NotAModel { path: path.to_owned() })
        }
    }

    /// Shapes and limits.
    #[must_use]
    pub fn spec(&self) -> &BaseModelSpec {
        &self.config.spec
    }

    /// How the linears of layers are stored, each format once, in the order of layers.
    #[must_use]
    pub fn layer_formats(&self) -> Vec<Format> {
        let mut formats = Vec::new();
        for linear in self.weights.layer_linears() {
            if !formats.contains(&linear.format()) {
                formats.push(linear.format());
            }
        }
        formats
    }

    /// Bytes of all linears.
    #[must_use]
    pub fn weight_bytes(&self) -> usize {
        self.weights.linears().map(PackedLinear::num_bytes).sum()
    }

    fn assemble(source: &Source, options: &LoadOptions) -> Result<Self, ModelError> {
        let mut config = source.config().clone();
        let spec = config.spec.clone();
        let table = LinearShape { num_inputs: spec.hidden_size, num_outputs: spec.vocab_size };
        let layers = load_layers(&config, source, options)?;
        let lm_head = source
            .has("lm_head.weight")
            .then(|| source.linear("lm_head", table))
            .filter(|_| !spec.tied_embeddings)
            .transpose()?;
        if lm_head.is_none() && !spec.tied_embeddings {
            return Err(ModelError::Invalid(
                "the checkpoint has no lm_head.weight, and its configuration does not tie it to the embedding".into(),
            ));
        }
        config.spec.tied_embeddings = lm_head.is_none();
        let weights = ModelWeights {
            embedding: source.linear("model.embed_tokens", table)?,
            layers,
            final_norm: required(source, "model.norm.weight", spec.hidden_size)?,
            lm_head,
        };
        Ok(Self { config, origin: source.describe(), weights: Arc::new(weights) })
    }
}

/// Tensors by their Hugging Face names.
pub(crate) trait WeightSource {
    /// What the model is.
    fn config(&self) -> &ModelConfig;
    /// How the weights were made, for people.
    fn describe(&self) -> String;
    /// Whether there is a tensor of this full name, or one in codes in its place.
    fn has(&self, name: &str) -> bool;
    /// The matrix `name.weight`.
    fn linear(&self, name: &str, shape: LinearShape) -> Result<PackedLinear, ModelError>;
    /// The vector of this full name, if there is one.
    fn vector(&self, name: &str, len: usize) -> Result<Option<Vec<f32>>, ModelError>;
}

/// A checkpoint that several threads may read.
pub(crate) type Source = dyn WeightSource + Send + Sync;

/// What the cache holds of a checkpoint.
struct PackedSource {
    config: ModelConfig,
    origin: String,
    file: PackedFile,
}

impl WeightSource for PackedSource {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn describe(&self) -> String {
        self.origin.clone()
    }

    fn has(&self, name: &str) -> bool {
        self.file.has(name)
    }

    fn linear(&self, name: &str, shape: LinearShape) -> Result<PackedLinear, ModelError> {
        Ok(self.file.linear(name, shape)?)
    }

    fn vector(&self, name: &str, len: usize) -> Result<Option<Vec<f32>>, ModelError> {
        Ok(self.file.vector(name, len)?)
    }
}

/// Opens a `.gguf` file or a Hugging Face directory.
pub(crate) fn open(path: &Path, quantize: Quantize) -> Result<Box<Source>, ModelError> {
    if path.is_dir() && path.join("config.json").is_file() {
        Ok(Box::new(HfSource::open(path, quantize)?))
    } else if path.is_file() {
        Ok(Box::new(GgufSource::open(path)?))
    } else {
        Err(ModelError::NotAModel { path: path.to_owned() })
    }
}

fn required(source: &Source, name: &str, len: usize) -> Result<Vec<f32>, ModelError> {
    source
        .vector(name, len)?
        .ok_or_else(|| ModelError::Invalid(format!("the checkpoint has no tensor {name}")))
}

/// Layers are converted side by side; the first error wins.
fn load_layers(
    config: &ModelConfig,
    source: &Source,
    options: &LoadOptions,
) -> Result<Vec<LayerWeights<PackedLinear>>, ModelError> {
    let num_layers = config.spec.num_layers;
    let num_threads = match options.num_threads {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        given => given,
    };
    let (next, num_done) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let work = || {
        let mut loaded = Vec::new();
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            if index >= num_layers {
                return Ok(loaded);
            }
            loaded.push((index, load_layer(config, source, index)?));
            let done = num_done.fetch_add(1, Ordering::Relaxed) + 1;
            if let Some(on_progress) = &options.on_progress {
                on_progress(done, num_layers);
            }
        }
    };
    let results: Vec<Result<Vec<_>, ModelError>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..num_threads.max(1)).map(|_| scope.spawn(work)).collect();
        threads.into_iter().map(|thread| thread.join().expect("loading does not panic")).collect()
    });
    let mut layers = Vec::with_capacity(num_layers);
    for result in results {
        layers.extend(result?);
    }
    layers.sort_by_key(|(index, _)| *index);
    Ok(layers.into_iter().map(|(_, layer)| layer).collect())
}

fn load_layer(
    config: &ModelConfig,
    source: &Source,
    index: usize,
) -> Result<LayerWeights<PackedLinear>, ModelError> {
    let spec = &config.spec;
    let prefix = format!("model.layers.{index}");
    let linear = |module: Module| {
        let name = Site::Layer { layer: index as u32, module }.hf_name();
        let shape = spec.linear(module);
        Ok::<_, ModelError>(LinearWeights {
            weight: source.linear(&name, shape)?,
            bias: source.vector(&format!("{name}.bias"), shape.num_outputs)?,
        })
    };
    let norm = |name: &str| required(source, &format!("{prefix}.{name}.weight"), spec.hidden_size);
    let head_norm = |name: &str| {
        let name = format!("{prefix}.self_attn.{name}.weight");
        config.qk_norm.then(|| required(source, &name, spec.head_dim)).transpose()
    };
    Ok(LayerWeights {
        attention_norm: norm("input_layernorm")?,
        q: linear(Module::Q)?,
        k: linear(Module::K)?,
        v: linear(Module::V)?,
        q_norm: head_norm("q_norm")?,
        k_norm: head_norm("k_norm")?,
        o: linear(Module::O)?,
        mlp_norm: norm("post_attention_layernorm")?,
        gate: linear(Module::Gate)?,
        up: linear(Module::Up)?,
        down: linear(Module::Down)?,
    })
}

//! A decoder in double precision that applies the primitives of a lowered adapter one by one and densely,
//! as `weft_types` defines them: what PEFT computes must come out of it. Reads the tiny models.

use serde_json::Value;
use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use weft_adapters::{BaseLinear, BaseWeights};
use weft_testkit::golden::{GoldenFile, GoldenTensor};
use weft_types::{
    Activation, AdapterTensor, BaseModelSpec, BottleneckInput, Dtype, LoweredAdapter, Module, Site,
};

/// A tiny model.
#[derive(Debug)]
pub(crate) struct Reference {
    pub(crate) spec: BaseModelSpec,
    config: Value,
    weights: GoldenFile,
}

pub(crate) fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(name)
}

impl Reference {
    pub(crate) fn open(name: &str) -> Self {
        let dir = golden("models").join(name);
        let config = std::fs::read(dir.join("config.json")).unwrap();
        let config: Value = serde_json::from_slice(&config).unwrap();
        let weights = GoldenFile::open(&dir.join("model.safetensors")).unwrap();
        let number = |key: &str| config[key].as_u64().map(|value| value as usize);
        let (hidden, heads) =
            (number("hidden_size").unwrap(), number("num_attention_heads").unwrap());
        let spec = BaseModelSpec {
            num_layers: number("num_hidden_layers").unwrap(),
            hidden_size: hidden,
            intermediate_size: number("intermediate_size").unwrap(),
            num_heads: heads,
            num_kv_heads: number("num_key_value_heads").unwrap(),
            head_dim: number("head_dim").unwrap_or(hidden / heads),
            vocab_size: number("vocab_size").unwrap(),
            max_context: number("max_position_embeddings").unwrap(),
            tied_embeddings: config["tie_word_embeddings"].as_bool().unwrap(),
        };
        Self { spec, config, weights }
    }

    fn find(&self, name: &str) -> Option<&GoldenTensor<f32>> {
        self.weights.names().any(|other| other == name).then(|| self.weights.f32(name))
    }

    fn weight_at(&self, site: Site) -> &GoldenTensor<f32> {
        match site {
            Site::LmHead if self.spec.tied_embeddings => {
                self.weights.f32("model.embed_tokens.weight")
            }
            site => self.weights.f32(&format!("{}.weight", key(site))),
        }
    }

    fn bias_at(&self, site: Site) -> Option<&[f32]> {
        self.find(&format!("{}.bias", key(site))).map(|bias| bias.values.as_slice())
    }

    /// `y = g_out ⊙ (W (g_in ⊙ x) + b + low-rank) + shift`
    fn linear(&self, adapter: &LoweredAdapter, site: Site, x: &[f64]) -> Vec<f64> {
        let vectors = adapter.vectors.iter().find(|vectors| vectors.site == site);
        let input = vectors.and_then(|vectors| vectors.input.as_deref());
        let scaled: Vec<f64> = match input {
            Some(input) => x.iter().zip(input).map(|(x, gain)| x * f64::from(*gain)).collect(),
            None => x.to_vec(),
        };
        let rows = self.weight_at(site).values.chunks_exact(x.len());
        let mut y: Vec<f64> = rows.map(|row| dot(row.iter().copied(), &scaled)).collect();
        if let Some(bias) = self.bias_at(site) {
            y.iter_mut().zip(bias).for_each(|(y, bias)| *y += f64::from(*bias));
        }
        if let Some(update) = adapter.at(site) {
            let (a, b) = (matrix(&update.a), matrix(&update.b));
            assert_eq!((update.a.cols, update.b.cols), (x.len(), y.len()));
            for (a, b) in a.iter().zip(&b) {
                let inner = f64::from(update.scale) * dot(a.iter().copied(), x);
                y.iter_mut().zip(b).for_each(|(y, b)| *y += inner * f64::from(*b));
            }
        }
        if let Some(output) = vectors.and_then(|vectors| vectors.output.as_deref()) {
            y.iter_mut().zip(output).for_each(|(y, gain)| *y *= f64::from(*gain));
        }
        if let Some(shift) = vectors.and_then(|vectors| vectors.shift.as_deref()) {
            y.iter_mut().zip(shift).for_each(|(y, shift)| *y += f64::from(*shift));
        }
        y
    }

    /// Adds the output of a block to the residual stream.
    fn accumulate(&self, adapter: &LoweredAdapter, site: Site, x: &[f64], h: &mut [f64]) {
        let y = self.linear(adapter, site, x);
        h.iter_mut().zip(&y).for_each(|(h, y)| *h += y);
        let Some(bottleneck) = adapter.bottlenecks.iter().find(|part| part.site == site) else {
            return;
        };
        let reads = match bottleneck.reads {
            BottleneckInput::Output => y,
            BottleneckInput::Residual => h.to_vec(),
        };
        let (a, b) = (matrix(&bottleneck.a), matrix(&bottleneck.b));
        for ((a, b), bias) in a.iter().zip(&b).zip(&bottleneck.a_bias) {
            let inner = dot(a.iter().copied(), &reads) + f64::from(*bias);
            let inner = activate(bottleneck.activation, inner);
            h.iter_mut().zip(b).for_each(|(h, b)| *h += inner * f64::from(*b));
        }
        h.iter_mut().zip(&bottleneck.b_bias).for_each(|(h, d)| *h += f64::from(*d));
    }

    fn embed(&self, adapter: &LoweredAdapter, token: u32) -> Vec<f64> {
        let hidden = self.spec.hidden_size;
        let own = adapter.token_rows.as_ref().and_then(|rows| {
            let index = rows.tokens.binary_search(&token).ok()?;
            Some(matrix(&rows.rows)[index].clone())
        });
        let mut h: Vec<f64> = match own {
            Some(row) => row.iter().map(|value| f64::from(*value)).collect(),
            None if token as usize >= self.spec.vocab_size => vec![0.0; hidden],
            None => {
                let table = self.weights.f32("model.embed_tokens.weight");
                table.row(token as usize).iter().map(|value| f64::from(*value)).collect()
            }
        };
        if let Some(update) = &adapter.embedding {
            let (a, b) = (matrix(&update.a), matrix(&update.b));
            for (a, b) in a[token as usize].iter().zip(&b) {
                let inner = f64::from(update.scale) * f64::from(*a);
                h.iter_mut().zip(b).for_each(|(h, b)| *h += inner * f64::from(*b));
            }
        }
        h
    }

    fn norm(&self, name: &str, x: &[f64]) -> Vec<f64> {
        let weight = &self.weights.f32(&format!("{name}.weight")).values;
        let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
        let scale = 1.0 / (mean + self.config["rms_norm_eps"].as_f64().unwrap()).sqrt();
        x.iter().zip(weight).map(|(x, weight)| x * scale * f64::from(*weight)).collect()
    }

    /// Turns each head of `x` by the angles of a position; first its norm, where the model has one.
    fn turn(&self, norm: &str, x: &[f64], position: usize) -> Vec<f64> {
        let head_dim = self.spec.head_dim;
        let mut turned = Vec::with_capacity(x.len());
        for head in x.chunks_exact(head_dim) {
            let head = match self.find(&format!("{norm}.weight")) {
                Some(_) => self.norm(norm, head),
                None => head.to_vec(),
            };
            let half = head_dim / 2;
            let angle = |i: usize| (position as f64 * self.frequency(i)).sin_cos();
            let first = (0..half).map(|i| head[i] * angle(i).1 - head[i + half] * angle(i).0);
            let second = (0..half).map(|i| head[i + half] * angle(i).1 + head[i] * angle(i).0);
            turned.extend(first.chain(second));
        }
        turned
    }

    fn frequency(&self, index: usize) -> f64 {
        let rope = &self.config["rope_parameters"];
        let number = |key: &str| rope[key].as_f64().unwrap();
        let exponent = (2 * index) as f64 / self.spec.head_dim as f64;
        let frequency = 1.0 / number("rope_theta").powf(exponent);
        if rope["rope_type"] != "llama3" {
            return frequency;
        }
        let wavelength = std::f64::consts::TAU / frequency;
        let context = number("original_max_position_embeddings");
        let (low, high) = (number("low_freq_factor"), number("high_freq_factor"));
        let smooth = ((context / wavelength - low) / (high - low)).clamp(0.0, 1.0);
        (1.0 - smooth) * frequency / number("factor") + smooth * frequency
    }

    /// Logits of all tokens, `[T, vocab]`; the adapter's virtual tokens come before them.
    pub(crate) fn logits(&self, adapter: &LoweredAdapter, tokens: &[u32]) -> Vec<f64> {
        let (spec, num_virtual) = (&self.spec, adapter.num_virtual_tokens);
        let virtual_tokens = (0..num_virtual).map(|i| (spec.vocab_size + i) as u32);
        let tokens: Vec<u32> = virtual_tokens.chain(tokens.iter().copied()).collect();
        let mut h: Vec<_> = tokens.iter().map(|&token| self.embed(adapter, token)).collect();
        for layer in 0..spec.num_layers {
            let site = |module| Site::Layer { layer: layer as u32, module };
            let (mut queries, mut keys, mut values) = (Vec::new(), Vec::new(), Vec::new());
            for (position, h) in h.iter().enumerate() {
                let x = self.norm(&format!("model.layers.{layer}.input_layernorm"), h);
                let name = |norm: &str| format!("model.layers.{layer}.self_attn.{norm}");
                let q = self.linear(adapter, site(Module::Q), &x);
                let k = self.linear(adapter, site(Module::K), &x);
                queries.push(self.turn(&name("q_norm"), &q, position));
                keys.push(self.turn(&name("k_norm"), &k, position));
                values.push(self.linear(adapter, site(Module::V), &x));
            }
            if let Some(prefix) = &adapter.kv_prefix {
                let rows = matrix(&prefix.rows);
                let row = |part: usize, token: usize| -> Vec<f64> {
                    let row = &rows[(layer * 2 + part) * prefix.num_tokens + token];
                    row.iter().map(|value| f64::from(*value)).collect()
                };
                for token in 0..prefix.num_tokens {
                    (keys[token], values[token]) = (row(0, token), row(1, token));
                }
            }
            for (position, h) in h.iter_mut().enumerate() {
                let attended = self.attend(&queries[position], &keys, &values, position);
                self.accumulate(adapter, site(Module::O), &attended, h);
                let x = self.norm(&format!("model.layers.{layer}.post_attention_layernorm"), h);
                let gate = self.linear(adapter, site(Module::Gate), &x);
                let up = self.linear(adapter, site(Module::Up), &x);
                let inner =
                    gate.iter().zip(up).map(|(gate, up)| activate(Activation::Silu, *gate) * up);
                self.accumulate(adapter, site(Module::Down), &inner.collect::<Vec<_>>(), h);
            }
        }
        let last = h.iter().skip(num_virtual);
        let normed = last.map(|h| self.norm("model.norm", h));
        normed.flat_map(|x| self.linear(adapter, Site::LmHead, &x)).collect()
    }

    fn attend(
        &self,
        q: &[f64],
        keys: &[Vec<f64>],
        values: &[Vec<f64>],
        position: usize,
    ) -> Vec<f64> {
        let (spec, head_dim) = (&self.spec, self.spec.head_dim);
        let window =
            self.config["sliding_window"].as_u64().map_or(usize::MAX, |width| width as usize);
        let first = (position + 1).saturating_sub(window);
        let group = spec.num_heads / spec.num_kv_heads;
        let mut attended = Vec::with_capacity(q.len());
        for (head, q) in q.chunks_exact(head_dim).enumerate() {
            let of_head = head / group * head_dim..(head / group + 1) * head_dim;
            let score = |key: &Vec<f64>| {
                let products = q.iter().zip(&key[of_head.clone()]).map(|(q, k)| q * k);
                products.sum::<f64>() / (head_dim as f64).sqrt()
            };
            let scores: Vec<f64> = keys[first..=position].iter().map(score).collect();
            let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let scores: Vec<f64> = scores.iter().map(|score| (score - largest).exp()).collect();
            let sum: f64 = scores.iter().sum();
            for i in of_head {
                let weighted =
                    scores.iter().zip(&values[first..]).map(|(score, value)| score * value[i]);
                attended.push(weighted.sum::<f64>() / sum);
            }
        }
        attended
    }
}

impl BaseWeights for Reference {
    fn linear(&self, site: Site) -> io::Result<Box<dyn BaseLinear + '_>> {
        Ok(Box::new(Rows(self.weight_at(site))))
    }

    fn bias(&self, site: Site) -> io::Result<Option<Vec<f32>>> {
        Ok(self.bias_at(site).map(<[f32]>::to_vec))
    }
}

struct Rows<'a>(&'a GoldenTensor<f32>);

impl BaseLinear for Rows<'_> {
    fn row_into(&self, row: usize, out: &mut [f32]) {
        out.copy_from_slice(self.0.row(row));
    }
}

fn key(site: Site) -> String {
    match site {
        Site::Layer { layer, module } => {
            format!("model.layers.{layer}.{}", weft_testkit::peft::in_layer(module))
        }
        Site::LmHead => "lm_head".to_owned(),
    }
}

fn dot(row: impl Iterator<Item = f32>, x: &[f64]) -> f64 {
    row.zip(x).map(|(weight, x)| f64::from(weight) * x).sum()
}

/// Rows in single precision, with their scales.
pub(crate) fn matrix(tensor: &AdapterTensor) -> Vec<Vec<f32>> {
    let size = tensor.dtype.size();
    let value = |bytes: &[u8]| match tensor.dtype {
        Dtype::F32 => f32::from_le_bytes(bytes.try_into().unwrap()),
        Dtype::F16 => half::f16::from_le_bytes(bytes.try_into().unwrap()).to_f32(),
        Dtype::Bf16 => half::bf16::from_le_bytes(bytes.try_into().unwrap()).to_f32(),
        Dtype::I8 => f32::from(bytes[0].cast_signed()),
    };
    let scale = |row: usize| tensor.row_scales.as_ref().map_or(1.0, |scales| scales[row]);
    let rows = tensor.data.chunks_exact((tensor.cols * size).max(1)).enumerate();
    rows.map(|(row, data)| data.chunks_exact(size).map(|bytes| value(bytes) * scale(row)).collect())
        .collect()
}

fn activate(activation: Activation, x: f64) -> f64 {
    match activation {
        Activation::Relu => x.max(0.0),
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::GeluTanh => {
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x * x * x);
            0.5 * x * (1.0 + inner.tanh())
        }
        Activation::Tanh => x.tanh(),
        Activation::Identity => x,
        Activation::Gelu => panic!("no golden file has it"),
    }
}

/// The metadata `base` of a golden file.
pub(crate) fn base_of(path: &Path) -> String {
    let bytes = std::fs::read(path).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: HashMap<String, Value> = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    header["__metadata__"]["base"].as_str().unwrap().to_owned()
}

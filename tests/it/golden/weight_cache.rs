//! Weights that an earlier start packed: the same bits as packed anew, for every kind of checkpoint.

use crate::support::decoding::all_logits;
use crate::support::golden;
use std::path::{Path, PathBuf};
use std::time::Duration;
use weft_kernels::PackedLinear;
use weft_model::weights::LinearWeights;
use weft_model::{LoadOptions, LoadedModel, PACKING_VERSION, Quantize, WeightCache};

/// Checkpoints of every kind that is read.
const CHECKPOINTS: [&str; 21] = [
    "bases/awq-128",
    "bases/awq-32",
    "bases/awq-64",
    "bases/float",
    "bases/fp4-dq-skip",
    "bases/gptq-8-act-order",
    "bases/gptq-act-order",
    "bases/gptq-asym-128",
    "bases/gptq-sym-32",
    "bases/gptq-v2-rows",
    "bases/int8",
    "bases/nf4",
    "bases/nf4-dq",
    "bases/nf4-stored-as-bf16",
    "models/tiny-llama",
    "models/tiny-llama-rope3",
    "models/tiny-llama-sharded",
    "models/tiny-mistral",
    "models/tiny-qwen2",
    "models/tiny-qwen3",
    "gguf/tiny-mixed.gguf",
];

/// Those, and float ones in every way that they can be quantized.
fn checkpoints() -> Vec<(PathBuf, Quantize)> {
    let mut all: Vec<_> = CHECKPOINTS.map(|name| (golden(name), Quantize::None)).into();
    for quantize in [Quantize::Int8, Quantize::Int4, Quantize::Nf4, Quantize::Nf4DoubleQuant] {
        all.push((golden("models/tiny-llama"), quantize));
        all.push((golden("models/tiny-qwen2"), quantize));
    }
    all.sort_by_key(|(path, quantize)| (path.clone(), quantize.to_string()));
    all
}

fn load(path: &Path, quantize: Quantize, cache: Option<&WeightCache>) -> LoadedModel {
    let options = LoadOptions { quantize, cache: cache.cloned(), ..LoadOptions::default() };
    LoadedModel::load(path, &options).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Matrices and vectors of a model, in an order that stays.
fn parts(model: &LoadedModel) -> (Vec<&PackedLinear>, Vec<&[f32]>) {
    let weights = &model.weights;
    let (mut linears, mut vectors) = (vec![&weights.embedding], vec![&weights.final_norm[..]]);
    linears.extend(&weights.lm_head);
    for layer in &weights.layers {
        vectors.extend([&layer.attention_norm[..], &layer.mlp_norm]);
        vectors.extend(layer.q_norm.iter().chain(&layer.k_norm).map(Vec::as_slice));
        let with_biases =
            [&layer.q, &layer.k, &layer.v, &layer.o, &layer.gate, &layer.up, &layer.down];
        for LinearWeights { weight, bias } in with_biases {
            linears.push(weight);
            vectors.extend(bias.as_deref());
        }
    }
    (linears, vectors)
}

/// All bits of a model's weights.
fn bytes(model: &LoadedModel) -> Vec<u8> {
    let (linears, vectors) = parts(model);
    let mut bytes = Vec::new();
    for linear in linears {
        bytes.extend(linear.as_bytes());
        bytes.extend(linear.order().unwrap_or_default().iter().flat_map(|at| at.to_le_bytes()));
    }
    bytes.extend(vectors.into_iter().flatten().flat_map(|value| value.to_le_bytes()));
    bytes
}

/// The file of the cache, once there is one.
fn written(dir: &Path) -> PathBuf {
    for _ in 0..3000 {
        let names = std::fs::read_dir(dir).into_iter().flatten();
        let mut files = names.map(|entry| entry.unwrap().path());
        if let Some(file) = files.find(|file| file.extension().is_some_and(|end| end == "weft")) {
            return file;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("nothing was written");
}

#[test]
fn mapped_weights_have_the_bits_of_packed_ones_for_every_kind_of_checkpoint() {
    for (path, quantize) in checkpoints() {
        let dir = tempfile::tempdir().unwrap();
        let cache = WeightCache::in_dir(dir.path().join("packed")).with_min_bytes(0);
        let packed = load(&path, quantize, Some(&cache));
        written(&dir.path().join("packed"));
        let mapped = load(&path, quantize, Some(&cache));
        let what = format!("{} {quantize}", path.display());
        assert!(parts(&packed).0.iter().all(|linear| !linear.is_shared()), "{what}");
        assert!(parts(&mapped).0.iter().all(|linear| linear.is_shared()), "{what}");
        assert_eq!((&mapped.config, &mapped.origin), (&packed.config, &packed.origin), "{what}");
        assert!(bytes(&mapped) == bytes(&packed), "{what}");
        let logits = |model| -> Vec<u32> {
            all_logits(model, None, &[1, 5, 9, 2]).into_iter().map(f32::to_bits).collect()
        };
        assert_eq!(logits(&mapped), logits(&packed), "{what}");
    }
}

#[test]
fn checkpoints_are_packed_as_their_version_says() {
    let mut hash = blake3::Hasher::new();
    for (path, quantize) in checkpoints() {
        hash.update(&bytes(&load(&path, quantize, None)));
    }
    assert_eq!(
        (PACKING_VERSION, hash.finalize().to_hex().as_str()),
        (1, "3bf1cdaa0c8a8a6748bf507cc55909fa52ad442db71d63f48c16f256ed9bf51c"),
        "a checkpoint is packed into other bytes: raise PACKING_VERSION, so that nobody serves what an \
         older build packed, and write the new version and hash here"
    );
}

#[test]
fn another_quantization_or_a_changed_checkpoint_has_a_file_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("model");
    std::fs::create_dir(&model).unwrap();
    for file in ["config.json", "model.safetensors"] {
        let from = golden("models/tiny-llama").join(file);
        std::fs::copy(from, model.join(file)).unwrap();
    }
    let packed = dir.path().join("packed");
    let cache = WeightCache::in_dir(packed.clone()).with_min_bytes(0);
    load(&model, Quantize::None, Some(&cache));
    written(&packed);
    let is_mapped = |quantize| load(&model, quantize, Some(&cache)).weights.embedding.is_shared();
    assert!(is_mapped(Quantize::None));
    assert!(!is_mapped(Quantize::Int8));
    // One number of one tensor.
    let weights = model.join("model.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&weights, bytes).unwrap();
    let again = load(&model, Quantize::None, Some(&cache));
    assert!(!again.weights.embedding.is_shared());
}

#[test]
fn a_damaged_file_is_not_served_and_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let cache = WeightCache::in_dir(dir.path().to_owned()).with_min_bytes(0);
    let path = golden("models/tiny-qwen2");
    let packed = load(&path, Quantize::None, Some(&cache));
    let file = written(dir.path());
    let sound = std::fs::read(&file).unwrap();
    // The middle is some linear's data.
    let mut damaged = sound.clone();
    damaged[sound.len() / 2] ^= 1;
    for broken in [damaged, sound[..sound.len() / 2].to_vec(), b"something else".to_vec(), vec![]] {
        // By renaming, as everybody should.
        let beside = dir.path().join("beside");
        std::fs::write(&beside, &broken).unwrap();
        std::fs::rename(&beside, &file).unwrap();
        let again = load(&path, Quantize::None, Some(&cache));
        assert!(!again.weights.embedding.is_shared());
        assert!(bytes(&again) == bytes(&packed));
        let is_replaced = (0..3000).any(|_| {
            std::thread::sleep(Duration::from_millis(10));
            std::fs::read(&file).unwrap() == sound
        });
        assert!(is_replaced);
    }
}

#[test]
fn small_models_and_places_that_cannot_be_written_leave_nothing_and_are_served() {
    let dir = tempfile::tempdir().unwrap();
    let path = golden("models/tiny-llama");
    let small = WeightCache::in_dir(dir.path().join("packed"));
    load(&path, Quantize::None, Some(&small));
    let occupied = dir.path().join("file");
    std::fs::write(&occupied, "").unwrap();
    load(&path, Quantize::None, Some(&WeightCache::in_dir(occupied.clone()).with_min_bytes(0)));
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(std::fs::read(&occupied).unwrap(), b"");
    assert!(!dir.path().join("packed").exists());
}

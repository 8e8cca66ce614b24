//! Whatever the two files hold, the loader answers with a sentence or with an adapter that fits the
//! base: it never panics.

use crate::reference::golden;
use proptest::prelude::*;
use serde_json::Value;
use std::io;
use std::path::PathBuf;
use std::sync::OnceLock;
use weft_adapters::{BaseLinear, BaseWeights, ForBase, LoadLimits, lower_peft_bytes};
use weft_testkit::peft::RandomAdapter;
use weft_testkit::safetensors_file::{RawTensor, safetensors_bytes};
use weft_testkit::tiny_llama_spec;
use weft_types::{AdapterTensor, BaseModelSpec, LoweredAdapter, Module, Site};

const MAX_RANK: usize = 16;

fn good() -> RandomAdapter {
    let modules = vec![Module::Q, Module::V];
    RandomAdapter { modules, embedding: true, lm_head: true, ..RandomAdapter::of_rank(2, 1) }
}

fn good_config() -> Vec<u8> {
    serde_json::to_vec(&good().config()).unwrap()
}

fn good_tensors() -> Vec<u8> {
    safetensors_bytes(&good().tensors(&tiny_llama_spec()))
}

/// Loads, and checks what was loaded.
fn load(config: &[u8], tensors: &[u8]) {
    let base = tiny_llama_spec();
    match lower_peft_bytes(config, tensors, &base, &LoadLimits { max_lora_rank: MAX_RANK }) {
        Err(refusal) => {
            assert!(!refusal.reason().is_empty());
            assert!(refusal.reason().len() < 2000, "{}", refusal.reason().len());
        }
        Ok(adapter) => check_fits(&adapter),
    }
}

fn check_fits(adapter: &LoweredAdapter) {
    let base = tiny_llama_spec();
    assert!(!adapter.low_rank.is_empty() || adapter.embedding.is_some());
    assert!(adapter.low_rank.is_sorted_by(|a, b| a.site < b.site));
    for update in &adapter.low_rank {
        if let Site::Layer { layer, .. } = update.site {
            assert!((layer as usize) < base.num_layers);
        }
        let shape = base.site(update.site);
        check_pair(&update.a, &update.b, update.scale);
        assert_eq!((update.a.cols, update.b.cols), (shape.num_inputs, shape.num_outputs));
        assert_eq!(update.a.rows, update.b.rows);
        assert!((1..=MAX_RANK).contains(&update.rank()));
    }
    if let Some(update) = &adapter.embedding {
        check_pair(&update.a, &update.b, update.scale);
        assert_eq!((update.a.rows, update.b.cols), (base.vocab_size, base.hidden_size));
        assert_eq!(update.a.cols, update.b.rows);
        assert!((1..=MAX_RANK).contains(&update.b.rows));
    }
}

fn check_pair(a: &AdapterTensor, b: &AdapterTensor, scale: f32) {
    assert!(scale.is_finite());
    for tensor in [a, b] {
        assert_eq!(tensor.data.len(), tensor.rows * tensor.cols * tensor.dtype.size());
    }
}

/// One edit of a byte string.
#[derive(Clone, Debug)]
enum Edit {
    Set(usize, u8),
    Insert(usize, Vec<u8>),
    Remove(usize, usize),
    Cut(usize),
}

fn edit() -> impl Strategy<Value = Edit> {
    let pieces =
        ["0", "-", "9", "\"", "{", "}", "[", "]", ",", ":", "null", "true", "1e999", "\\u"];
    let piece =
        proptest::sample::select(pieces.to_vec()).prop_map(|piece| piece.as_bytes().to_vec());
    let at = any::<u16>().prop_map(usize::from);
    prop_oneof![
        (at.clone(), any::<u8>()).prop_map(|(at, byte)| Edit::Set(at, byte)),
        (at.clone(), b' '..b'~').prop_map(|(at, byte)| Edit::Set(at, byte)),
        (at.clone(), piece).prop_map(|(at, bytes)| Edit::Insert(at, bytes)),
        (at.clone(), 1..40_usize).prop_map(|(at, count)| Edit::Remove(at, count)),
        at.prop_map(Edit::Cut),
    ]
}

/// Applies edits to the first `len` bytes.
fn apply(bytes: &mut Vec<u8>, len: usize, edits: &[Edit]) {
    for edit in edits {
        let len = len.min(bytes.len());
        if len == 0 {
            return;
        }
        match edit {
            Edit::Set(at, byte) => bytes[at % len] = *byte,
            Edit::Insert(at, piece) => {
                let at = at % len;
                bytes.splice(at..at, piece.iter().copied());
            }
            Edit::Remove(at, count) => {
                let at = at % len;
                bytes.drain(at..(at + count).min(len));
            }
            Edit::Cut(at) => bytes.truncate(at % len),
        }
    }
}

fn json_value() -> impl Strategy<Value = Value> {
    let names =
        ["q_proj", "v_proj", "lm_head", "embed_tokens", ".*", "layers", "all-linear", "LORA"];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        (-2_i64..40).prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        proptest::sample::select(names.to_vec()).prop_map(Value::from),
        "[a-z._*()\\[\\]{}?+|\\\\^$0-9=!<:,]{0,24}".prop_map(Value::from),
        ".{0,12}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 24, 6, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            proptest::collection::vec(("[a-z_.*]{0,8}|q_proj|lm_head", inner), 0..5).prop_map(
                |entries| Value::from(entries.into_iter().collect::<serde_json::Map<_, _>>())
            ),
        ]
    })
}

/// Both files of the adapters that peft made of each method.
fn files_of_methods() -> &'static [(Vec<u8>, Vec<u8>)] {
    static FILES: OnceLock<Vec<(Vec<u8>, Vec<u8>)>> = OnceLock::new();
    FILES.get_or_init(|| {
        let dirs = golden("methods").read_dir().unwrap().map(|entry| entry.unwrap().path());
        let mut dirs: Vec<_> = dirs.filter(|path| path.is_dir()).collect();
        dirs.sort();
        let read = |dir: &PathBuf| {
            let config = std::fs::read(dir.join("adapter_config.json")).unwrap();
            let tensors = std::fs::read(dir.join("adapter_model.safetensors"));
            (config, tensors.or_else(|_| std::fs::read(dir.join("adapter.safetensors"))).unwrap())
        };
        dirs.iter().map(read).collect()
    })
}

/// A base of zeros, with biases.
#[derive(Debug)]
struct Zeros(BaseModelSpec);

impl BaseWeights for Zeros {
    fn linear(&self, _: Site) -> io::Result<Box<dyn BaseLinear + '_>> {
        Ok(Box::new(ZeroRows))
    }

    fn bias(&self, site: Site) -> io::Result<Option<Vec<f32>>> {
        Ok(Some(vec![0.0; self.0.site(site).num_outputs]))
    }
}

struct ZeroRows;

impl BaseLinear for ZeroRows {
    fn row_into(&self, _: usize, out: &mut [f32]) {
        out.fill(0.0);
    }
}

proptest! {
    #[test]
    fn any_bytes_are_answered(config in any::<Vec<u8>>(), tensors in any::<Vec<u8>>()) {
        load(&config, &tensors);
        load(&config, &good_tensors());
        load(&good_config(), &tensors);
    }

    #[test]
    fn an_edited_configuration_is_answered(edits in proptest::collection::vec(edit(), 1..6)) {
        let mut config = good_config();
        let len = config.len();
        apply(&mut config, len, &edits);
        load(&config, &good_tensors());
    }

    #[test]
    fn a_configuration_with_other_values_is_answered(
        changes in proptest::collection::vec((any::<proptest::sample::Index>(), json_value()), 1..4),
    ) {
        let mut config = good().config();
        let keys: Vec<_> = config.keys().cloned().collect();
        for (index, value) in changes {
            config.insert(index.get(&keys).clone(), value);
        }
        load(&serde_json::to_vec(&config).unwrap(), &good_tensors());
    }

    #[test]
    fn a_configuration_with_other_targets_is_answered(
        target in json_value(),
        exclude in json_value(),
        ranks in json_value(),
        layers in json_value(),
    ) {
        let mut config = good().config();
        for (key, value) in [
            ("target_modules", target),
            ("exclude_modules", exclude),
            ("rank_pattern", ranks),
            ("layers_to_transform", layers),
        ] {
            config.insert(key.into(), value);
        }
        load(&serde_json::to_vec(&config).unwrap(), &good_tensors());
    }

    #[test]
    fn an_edited_header_is_answered(edits in proptest::collection::vec(edit(), 1..6)) {
        let mut tensors = good_tensors();
        let header = 8 + u64::from_le_bytes(*tensors.first_chunk().unwrap()) as usize;
        apply(&mut tensors, header, &edits);
        load(&good_config(), &tensors);
        // The same edits under a length that fits them.
        let grown = tensors.len() as i64 - good_tensors().len() as i64;
        if let (Some(length), true) = ((header as i64 - 8).checked_add(grown), tensors.len() > 8) {
            tensors[..8].copy_from_slice(&length.to_le_bytes());
            load(&good_config(), &tensors);
        }
    }

    #[test]
    fn any_names_shapes_and_dtypes_are_answered(
        tensors in proptest::collection::vec(
            (
                "(base_model.model.)?(model.layers.[0-9]{1,2}.(self_attn|mlp).[qv]_proj|lm_head|\
                 model.embed_tokens)?.(lora_A|lora_B|lora_embedding_A|x|base_layer)(.weight)?|.{0,9}",
                proptest::sample::select(vec!["F32", "F16", "BF16", "F64", "I8", "F4", "nonsense"]),
                proptest::collection::vec(prop_oneof![0..70_usize, any::<usize>()], 0..4),
                proptest::collection::vec(any::<u8>(), 0..600),
            ),
            0..6,
        ),
    ) {
        let tensors: Vec<_> = tensors
            .into_iter()
            .map(|(name, dtype, shape, data)| RawTensor { name, dtype: dtype.into(), shape, data })
            .collect();
        load(&good_config(), &safetensors_bytes(&tensors));
    }

    #[test]
    fn edited_files_of_every_method_are_answered(
        method in any::<proptest::sample::Index>(),
        edits in proptest::collection::vec(edit(), 0..4),
        header_edits in proptest::collection::vec(edit(), 0..4),
    ) {
        let (mut config, mut tensors) = files_of_methods()[method.index(files_of_methods().len())].clone();
        let len = config.len();
        apply(&mut config, len, &edits);
        let header = 8 + u64::from_le_bytes(*tensors.first_chunk().unwrap()) as usize;
        let before = tensors.len() as i64;
        apply(&mut tensors, header, &header_edits);
        let grown = tensors.len() as i64 - before;
        if let (Some(length), true) = ((header as i64 - 8).checked_add(grown), tensors.len() > 8) {
            tensors[..8].copy_from_slice(&length.to_le_bytes());
        }
        let weights = Zeros(tiny_llama_spec());
        let base = ForBase { spec: &weights.0, weights: Some(&weights) };
        if let Err(refusal) = lower_peft_bytes(&config, &tensors, base, &LoadLimits::default()) {
            assert!(refusal.reason().len() < 2000, "{}", refusal.reason().len());
        }
    }

    #[test]
    fn good_adapters_of_any_kind_load(
        rank in 1..=MAX_RANK,
        seed in any::<u64>(),
        alpha in -8.0..64.0_f64,
        use_rslora in any::<bool>(),
        modules in proptest::sample::subsequence(Module::ALL.to_vec(), 1..=7),
        layers in proptest::option::of(proptest::sample::subsequence(vec![0_usize, 1], 1..=2)),
        embedding in any::<bool>(),
        lm_head in any::<bool>(),
    ) {
        let layers = if embedding { None } else { layers };
        let adapter = RandomAdapter {
            rank, alpha, use_rslora, modules, layers, embedding, lm_head, seed,
            ..RandomAdapter::default()
        };
        let base = tiny_llama_spec();
        let tensors = safetensors_bytes(&adapter.tensors(&base));
        let config = serde_json::to_vec(&adapter.config()).unwrap();
        let limits = LoadLimits { max_lora_rank: MAX_RANK };
        let lowered = lower_peft_bytes(&config, &tensors, &base, &limits).unwrap();
        check_fits(&lowered);
        prop_assert!(lowered.low_rank.iter().all(|update| update.rank() == rank));
    }
}

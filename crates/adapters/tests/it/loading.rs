//! Good adapters are lowered to what PEFT computes: exact ranks, scales by formula, `A` as it is and
//! `B` turned.

use std::path::Path;
use weft_adapters::{LoadLimits, load_peft_dir, lower_peft_bytes};
use weft_testkit::peft::{RandomAdapter, in_layer, write_peft_dir};
use weft_testkit::safetensors_file::RawTensor;
use weft_testkit::tiny_llama_spec;
use weft_types::{AdapterTensor, BaseModelSpec, Dtype, LoweredAdapter, Module, Site};

const LIMITS: LoadLimits = LoadLimits { max_lora_rank: 512 };

fn load(dir: &Path) -> LoweredAdapter {
    load_peft_dir(dir, &tiny_llama_spec(), &LIMITS).unwrap()
}

fn write_and_load(adapter: &RandomAdapter) -> LoweredAdapter {
    let dir = tempfile::tempdir().unwrap();
    adapter.write(&tiny_llama_spec(), dir.path()).unwrap();
    load(dir.path())
}

/// The elements at `[row, col]`, as bytes.
fn element(tensor: &AdapterTensor, row: usize, col: usize) -> &[u8] {
    let size = tensor.dtype.size();
    &tensor.data[(row * tensor.cols + col) * size..][..size]
}

fn check_turned(raw: &RawTensor, lowered: &AdapterTensor) {
    let [rows, cols] = raw.shape[..] else { panic!("{:?}", raw.shape) };
    assert_eq!((lowered.rows, lowered.cols), (cols, rows));
    let size = lowered.dtype.size();
    for row in 0..rows {
        for col in 0..cols {
            let stored = &raw.data[(row * cols + col) * size..][..size];
            assert_eq!(element(lowered, col, row), stored);
        }
    }
}

/// Compares an adapter with the tensors and the formula that it was made from.
fn check(adapter: &RandomAdapter, base: &BaseModelSpec, lowered: &LoweredAdapter) {
    let tensors = adapter.tensors(base);
    let find = |module: &str, part: &str| {
        let name = format!("base_model.model.{module}.{part}");
        tensors.iter().find(|tensor| tensor.name == name)
    };
    let mut num_updates = 0;
    let layers = (0..base.num_layers as u32)
        .flat_map(|layer| Module::ALL.map(|module| Site::Layer { layer, module }));
    for site in layers.chain([Site::LmHead]) {
        let module = match site {
            Site::Layer { layer, module } => format!("model.layers.{layer}.{}", in_layer(module)),
            Site::LmHead => "lm_head".to_owned(),
        };
        let (Some(a), Some(b)) = (find(&module, "lora_A.weight"), find(&module, "lora_B.weight"))
        else {
            assert!(lowered.at(site).is_none(), "{module}");
            continue;
        };
        let update = lowered.at(site).unwrap_or_else(|| panic!("{module}"));
        assert_eq!(update.rank(), adapter.rank_at(&module), "{module}");
        assert_eq!(update.scale, adapter.scale_at(&module), "{module}");
        assert_eq!((update.a.rows, update.a.cols), (a.shape[0], a.shape[1]));
        assert_eq!(*update.a.data, *a.data, "{module}");
        check_turned(b, &update.b);
        assert_eq!((update.a.dtype, update.b.dtype), (adapter.dtype, adapter.dtype));
        num_updates += 1;
    }
    assert_eq!(lowered.low_rank.len(), num_updates);
    let embedding = find("model.embed_tokens", "lora_embedding_A");
    assert_eq!(lowered.embedding.is_some(), embedding.is_some());
    if let (Some(a), Some(update)) = (embedding, &lowered.embedding) {
        assert_eq!(update.scale, adapter.scale_at("model.embed_tokens"));
        check_turned(a, &update.a);
        check_turned(find("model.embed_tokens", "lora_embedding_B").unwrap(), &update.b);
    }
}

#[test]
fn ranks_scales_and_weights_are_those_of_the_files() {
    let base = tiny_llama_spec();
    let qv = vec![Module::Q, Module::V];
    let everything =
        RandomAdapter { embedding: true, lm_head: true, ..RandomAdapter::of_rank(6, 1) };
    let adapters = [
        RandomAdapter::of_rank(1, 1),
        RandomAdapter { modules: qv.clone(), dtype: Dtype::F16, ..RandomAdapter::of_rank(3, 2) },
        RandomAdapter { use_rslora: true, dtype: Dtype::Bf16, ..RandomAdapter::of_rank(7, 3) },
        RandomAdapter { layers: Some(vec![1]), ..RandomAdapter::of_rank(64, 4) },
        RandomAdapter { layers: Some(vec![0]), lm_head: true, ..RandomAdapter::of_rank(2, 4) },
        RandomAdapter::of_rank(256, 5),
        RandomAdapter { alpha: 0.5, modules: vec![Module::Down], ..RandomAdapter::of_rank(9, 6) },
        RandomAdapter {
            rank_pattern: vec![
                ("model.layers.1.mlp.up_proj".into(), 2),
                ("up_proj".into(), 5),
                ("self_attn.q_proj".into(), 33),
                ("embed_tokens".into(), 4),
                ("lm_head".into(), 11),
            ],
            alpha_pattern: vec![("layers.0.self_attn.q_proj".into(), 3.0), ("lm_head".into(), 1.0)],
            ..everything.clone()
        },
        RandomAdapter { modules: Vec::new(), lm_head: false, ..everything.clone() },
        RandomAdapter { modules: Vec::new(), embedding: false, ..everything },
    ];
    for adapter in adapters {
        check(&adapter, &base, &write_and_load(&adapter));
    }
}

#[test]
fn every_spelling_of_the_tensors_names_gives_the_same_updates() {
    let base = tiny_llama_spec();
    let adapter = RandomAdapter { embedding: true, ..RandomAdapter::default() };
    let expected = write_and_load(&adapter);
    let spellings: [fn(&str) -> String; 3] = [
        |name| name.replace("base_model.model.", ""),
        |name| name.replace("lora_A.weight", "lora_A.default.weight"),
        |name| match name.contains("lora_embedding") {
            true => format!("{name}.default"),
            false => name.replace("_A.weight", "_A.default.weight").replace("_B.w", "_B.default.w"),
        },
    ];
    for (index, spell) in spellings.into_iter().enumerate() {
        let mut tensors = adapter.tensors(&base);
        tensors.iter_mut().for_each(|tensor| tensor.name = spell(&tensor.name));
        let dir = tempfile::tempdir().unwrap();
        write_peft_dir(dir.path(), &adapter.config(), &tensors).unwrap();
        let loaded = load_peft_dir(dir.path(), &base, &LIMITS);
        if index == 1 {
            // A with an adapter's name and B without: two adapters in one file.
            assert!(loaded.unwrap_err().to_string().contains("more than one adapter"));
            continue;
        }
        let loaded = loaded.unwrap();
        assert_eq!(loaded.low_rank, expected.low_rank);
        assert_eq!(loaded.embedding, expected.embedding);
    }
}

#[test]
fn configurations_of_past_releases_load() {
    let base = tiny_llama_spec();
    let adapter = RandomAdapter { modules: vec![Module::Q, Module::V], ..RandomAdapter::default() };
    let tensors = weft_testkit::safetensors_file::safetensors_bytes(&adapter.tensors(&base));
    let configs = [
        // 0.2: no patterns, and two keys that are gone.
        r#"{"base_model_name_or_path": "m", "bias": "none", "enable_lora": null,
            "fan_in_fan_out": false, "inference_mode": true, "lora_alpha": 16, "lora_dropout": 0.05,
            "merge_weights": false, "modules_to_save": null, "peft_type": "LORA", "r": 8,
            "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}"#,
        // 0.5: an empty string where later releases have null.
        r#"{"auto_mapping": null, "base_model_name_or_path": "m", "bias": "none",
            "fan_in_fan_out": false, "inference_mode": true, "init_lora_weights": true,
            "layers_pattern": "", "layers_to_transform": null, "lora_alpha": 16,
            "lora_dropout": 0.0, "modules_to_save": [], "peft_type": "LORA", "r": 8,
            "revision": null, "target_modules": ["v_proj", "q_proj"], "task_type": null}"#,
        // 0.10, with a trainer's mark.
        r#"{"auto_mapping": {"base_model_class": "LlamaForCausalLM", "parent_library": "t"},
            "alpha_pattern": {}, "bias": "none", "init_lora_weights": "gaussian",
            "layer_replication": null, "loftq_config": {}, "lora_alpha": 16.0, "megatron_config": null,
            "megatron_core": "megatron.core", "peft_type": "LORA", "r": 8, "rank_pattern": {},
            "target_modules": "(?:.*?(?:self_attn|mlp).*?(?:q_proj|v_proj).*?)", "use_dora": false,
            "use_rslora": false, "unsloth_fixed": true}"#,
        // The least that PEFT itself would load.
        r#"{"peft_type": "LORA", "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"]}"#,
        // Lazily written lookahead: Python has it.
        r#"{"peft_type": "LORA", "lora_alpha": 16, "target_modules": "(?!.*mlp).*[qv]_proj"}"#,
    ];
    for config in configs {
        let lowered = lower_peft_bytes(config.as_bytes(), &tensors, &base, &LIMITS);
        check(&adapter, &base, &lowered.unwrap_or_else(|refusal| panic!("{refusal}: {config}")));
    }
}

#[test]
fn initialisations_that_leave_the_base_alone_load() {
    let base = tiny_llama_spec();
    let adapter = RandomAdapter::default();
    for init in ["gaussian", "orthogonal", "eva", "mica"] {
        let mut config = adapter.config();
        config.insert("init_lora_weights".into(), init.into());
        let dir = tempfile::tempdir().unwrap();
        write_peft_dir(dir.path(), &config, &adapter.tensors(&base)).unwrap();
        check(&adapter, &base, &load(dir.path()));
    }
}

#[test]
fn the_hash_depends_on_each_file_and_on_nothing_else() {
    let hash = |adapter: &RandomAdapter| write_and_load(adapter).content_hash;
    let one = RandomAdapter::default();
    assert_eq!(hash(&one), hash(&one.clone()));
    let other_alpha = RandomAdapter { alpha: 17.0, ..one.clone() };
    let other_weights = RandomAdapter { seed: 1, ..one.clone() };
    assert_ne!(hash(&one), hash(&other_alpha));
    assert_ne!(hash(&one), hash(&other_weights));
}

#[test]
fn a_rank_at_the_limit_loads_and_one_above_names_the_flag() {
    let base = tiny_llama_spec();
    let dir = tempfile::tempdir().unwrap();
    RandomAdapter::of_rank(16, 1).write(&base, dir.path()).unwrap();
    assert!(load_peft_dir(dir.path(), &base, &LoadLimits { max_lora_rank: 16 }).is_ok());
    assert!(load_peft_dir(dir.path(), &base, &LoadLimits { max_lora_rank: usize::MAX }).is_ok());
    let sql = dir.path().join("sql");
    RandomAdapter::of_rank(16, 1).write(&base, &sql).unwrap();
    let error = load_peft_dir(&sql, &base, &LoadLimits { max_lora_rank: 15 }).unwrap_err();
    assert_eq!(
        error.to_string(),
        "adapter \"sql\" has rank 16, but this server was started with --max-lora-rank 15"
    );
}

#[test]
fn a_file_beyond_any_adapters_size_is_refused_unread() {
    let dir = tempfile::tempdir().unwrap();
    RandomAdapter::default().write(&tiny_llama_spec(), dir.path()).unwrap();
    // Sparse: takes no room on the disk, and would not fit into memory.
    let file = std::fs::File::create(dir.path().join("adapter_model.safetensors")).unwrap();
    file.set_len(1 << 42).unwrap();
    let error = load_peft_dir(dir.path(), &tiny_llama_spec(), &LIMITS).unwrap_err().to_string();
    assert!(error.contains("adapter_model.safetensors of more than"), "{error}");
}

#[cfg(unix)]
#[test]
fn a_socket_in_place_of_a_file_is_refused_unopened() {
    let dir = tempfile::tempdir().unwrap();
    RandomAdapter::default().write(&tiny_llama_spec(), dir.path()).unwrap();
    let path = dir.path().join("adapter_config.json");
    std::fs::remove_file(&path).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let error = load_peft_dir(dir.path(), &tiny_llama_spec(), &LIMITS).unwrap_err().to_string();
    assert!(error.contains("no regular file"), "{error}");
}

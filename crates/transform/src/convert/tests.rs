//! Each form there and back, and files that nobody should trust.

use super::pickle::read as read_pickle;
use super::torch_file::read_from;
use super::*;
use proptest::prelude::*;
use std::io::Cursor;
use weft_testkit::peft::RandomAdapter;
use weft_testkit::safetensors_file::RawTensor;
use weft_testkit::torch_file::{archive, state_dict_pickle, torch_bytes};
use weft_types::{BaseModelSpec, Dtype, LoweredAdapter, Module};

const BASE: &str = r#"{"model_type": "llama", "hidden_size": 64, "intermediate_size": 128,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 320,
    "max_position_embeddings": 512, "rms_norm_eps": 1e-5}"#;

fn base(dir: &Path) -> ModelConfig {
    let path = dir.join("config.json");
    fs::write(&path, BASE).unwrap();
    ModelConfig::read(&path).unwrap()
}

/// All but the hash, which is that of other bytes.
fn same(one: LoweredAdapter, other: LoweredAdapter) {
    let content_hash = one.content_hash;
    assert_eq!(one, LoweredAdapter { content_hash, ..other });
}

fn read_all(bytes: &[u8]) -> std::result::Result<BTreeMap<String, FileTensor>, String> {
    read_from(Cursor::new(bytes), bytes.len() as u64)
}

fn two_tensors() -> Vec<RawTensor> {
    vec![
        RawTensor::new("a", Dtype::F32, &[2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]),
        RawTensor::new("b", Dtype::Bf16, &[2], &[7.0, 8.0]),
    ]
}

#[test]
fn a_pickled_adapter_becomes_the_same_in_safetensors() {
    let dir = tempfile::tempdir().unwrap();
    let base = base(dir.path());
    let recipe = RandomAdapter { dtype: Dtype::F16, embedding: true, ..RandomAdapter::default() };
    let (old, plain, new) =
        (dir.path().join("old"), dir.path().join("plain"), dir.path().join("new"));
    recipe.write(&base.spec, &plain).unwrap();
    fs::create_dir(&old).unwrap();
    fs::copy(plain.join("adapter_config.json"), old.join("adapter_config.json")).unwrap();
    let tensors = recipe.tensors(&base.spec);
    fs::write(old.join("adapter_model.bin"), torch_bytes(&tensors)).unwrap();
    let report = convert(&old, Some(&base), &new).unwrap();
    assert_eq!((report.from, report.num_tensors), (Form::PeftPickle, tensors.len()));
    assert!(report.is_checked);
    let load = |dir: &Path| read_lowered(dir, &base.spec).unwrap();
    same(load(&plain), load(&new));
}

#[test]
fn a_gguf_adapter_and_back_is_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let llama = base(dir.path());
    let qwen = ModelConfig { architecture: "qwen2".into(), ..llama.clone() };
    for (name, base) in [("llama", &llama), ("qwen2", &qwen)] {
        for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
            let recipe = RandomAdapter {
                dtype,
                embedding: true,
                lm_head: true,
                rank_pattern: vec![("up_proj".into(), 3)],
                // alpha / r of llama.cpp is what rank_pattern makes of it, too.
                alpha: 24.0,
                ..RandomAdapter::default()
            };
            let of = |part: &str| dir.path().join(format!("{name}-{dtype:?}-{part}"));
            let (peft, gguf, back) = (of("peft"), of("adapter.gguf"), of("back"));
            recipe.write(&base.spec, &peft).unwrap();
            convert(&peft, Some(base), &gguf).unwrap();
            let report = convert(&gguf, Some(base), &back).unwrap();
            assert_eq!((report.from, report.to), (Form::Gguf, Form::Peft));
            let load = |dir: &Path| read_lowered(dir, &base.spec).unwrap();
            same(load(&peft), load(&back));
        }
    }
    // Without the base, the order of rows is not known.
    let gguf = dir.path().join("llama-F32-adapter.gguf");
    let error = convert(&gguf, None, &dir.path().join("x")).unwrap_err().to_string();
    assert!(error.contains("--base"), "{error}");
    let gguf = dir.path().join("qwen2-F32-adapter.gguf");
    convert(&gguf, None, &dir.path().join("without-base")).unwrap();
}

#[test]
fn scales_that_one_alpha_cannot_say_are_in_b() {
    let dir = tempfile::tempdir().unwrap();
    let base = base(dir.path());
    let recipe = RandomAdapter {
        dtype: Dtype::F16,
        use_rslora: true,
        rank_pattern: vec![("up_proj".into(), 3)],
        alpha_pattern: vec![("q_proj".into(), 5.0)],
        ..RandomAdapter::default()
    };
    let (peft, gguf, back) =
        (dir.path().join("p"), dir.path().join("a.gguf"), dir.path().join("b"));
    recipe.write(&base.spec, &peft).unwrap();
    convert(&peft, Some(&base), &gguf).unwrap();
    convert(&gguf, Some(&base), &back).unwrap();
    let updates =
        |dir: &Path| crate::factors::updates(read_lowered(dir, &base.spec).unwrap(), 1.0).unwrap();
    let (want, got) = (updates(&peft), updates(&back));
    for (weight, factors) in &want {
        let want = factors.product();
        let error = (got[weight].product() - &want).norm() / want.norm();
        assert!(error < 1e-6, "{weight:?} {error}");
    }
}

#[test]
fn rows_of_q_are_interleaved_in_the_file_of_a_llama() {
    let dir = tempfile::tempdir().unwrap();
    let base = base(dir.path());
    let recipe = RandomAdapter { modules: vec![Module::Q, Module::V], ..RandomAdapter::default() };
    let (peft, path) = (dir.path().join("p"), dir.path().join("a.gguf"));
    recipe.write(&base.spec, &peft).unwrap();
    convert(&peft, Some(&base), &path).unwrap();
    let file = weft_gguf::GgufFile::open(&path).unwrap();
    let tensors = recipe.tensors(&base.spec);
    let row = |data: &[u8], row: usize| data[row * 8 * 4..][..8 * 4].to_vec();
    let find =
        |name: &str| &tensors.iter().find(|tensor| tensor.name.ends_with(name)).unwrap().data;
    let q = file.tensor("blk.0.attn_q.weight.lora_b").unwrap();
    assert_eq!(q.0.shape, [8, 64]);
    // Of the second head, sixteen wide: its row 9 pairs with its row 1.
    assert_eq!(row(q.1, 16 + 3), row(find("0.self_attn.q_proj.lora_B.weight"), 16 + 9));
    let v = file.tensor("blk.0.attn_v.weight.lora_b").unwrap();
    assert_eq!(v.1, find("0.self_attn.v_proj.lora_B.weight"));
    let metadata = file.metadata();
    assert_eq!(metadata.require_str("general.type").unwrap(), "adapter");
    assert_eq!(metadata.require_f64("adapter.lora.alpha").unwrap(), 16.0);
}

/// A NeMo archive of an adapter of all seven linears, gate and up together.
fn nemo(spec: &BaseModelSpec, rename: fn(&str) -> String) -> (RandomAdapter, Vec<RawTensor>) {
    let recipe = RandomAdapter { rank: 4, alpha: 6.0, ..RandomAdapter::default() };
    let mut tensors = recipe.tensors(spec);
    // One A for gate and up.
    let gates: Vec<RawTensor> =
        tensors.iter().filter(|tensor| tensor.name.contains("gate_proj.lora_A")).cloned().collect();
    for gate in gates {
        let up = gate.name.replace("gate_proj", "up_proj");
        let up = tensors.iter_mut().find(|tensor| tensor.name == up).unwrap();
        up.data.clone_from(&gate.data);
    }
    let mut renamed: Vec<RawTensor> = Vec::new();
    for tensor in &tensors {
        if tensor.name.contains("up_proj") {
            continue;
        }
        let mut tensor = tensor.clone();
        if tensor.name.contains("gate_proj.lora_B") {
            let up = tensor.name.replace("gate_proj", "up_proj");
            let up = tensors.iter().find(|other| other.name == up).unwrap();
            tensor.data.extend(&up.data);
            tensor.shape[0] *= 2;
        }
        tensor.name = rename(&tensor.name);
        renamed.push(tensor);
    }
    (recipe, renamed)
}

fn nemo_name(name: &str) -> String {
    let pairs = [
        ("base_model.model.model.layers", "model.decoder.layers"),
        ("self_attn.o_proj", "self_attention.adapter_layer.lora_dense_attention_adapter"),
        ("self_attn.q_proj", "self_attention.adapter_layer.lora_unfused_kqv_adapter.q_adapter"),
        ("self_attn.k_proj", "self_attention.adapter_layer.lora_unfused_kqv_adapter.k_adapter"),
        ("self_attn.v_proj", "self_attention.adapter_layer.lora_unfused_kqv_adapter.v_adapter"),
        ("mlp.gate_proj", "mlp.adapter_layer.lora_hto4h_adapter"),
        ("mlp.down_proj", "mlp.adapter_layer.lora_4htoh_adapter"),
        ("lora_A", "linear_in"),
        ("lora_B", "linear_out"),
    ];
    pairs.iter().fold(name.to_owned(), |name, (from, to)| name.replace(from, to))
}

fn tar_of(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, bytes) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, name, *bytes).unwrap();
    }
    tar.into_inner().unwrap()
}

const NEMO_CONFIG: &str = "\
tensor_model_parallel_size: 1
pipeline_model_parallel_size: 1
num_layers: 2
activation: fast-swiglu
peft:
  peft_scheme: lora
  restore_from_path: null
  lora_tuning:
    variant: canonical
    target_modules:
    - attention_qkv
    adapter_dim: 4
    alpha: 6
    adapter_dropout: 0.0
";

#[test]
fn a_nemo_archive_becomes_peft() {
    let dir = tempfile::tempdir().unwrap();
    let base = base(dir.path());
    let (recipe, tensors) = nemo(&base.spec, nemo_name);
    let weights = torch_bytes(&tensors);
    let files =
        [("./model_config.yaml", NEMO_CONFIG.as_bytes()), ("./model_weights.ckpt", &weights)];
    let path = dir.path().join("lora.nemo");
    fs::write(&path, tar_of(&files)).unwrap();
    let out = dir.path().join("out");
    let report = convert(&path, Some(&base), &out).unwrap();
    assert_eq!((report.from, report.num_tensors), (Form::Nemo, 2 * 7 * 2));
    let lowered = read_lowered(&out, &base.spec).unwrap();
    assert_eq!(lowered.low_rank.len(), 14);
    assert!(lowered.low_rank.iter().all(|update| update.rank() == 4 && update.scale == 1.5));
    let want = recipe.tensors(&base.spec);
    let down = want.iter().find(|tensor| tensor.name.contains("1.mlp.down_proj.lora_A")).unwrap();
    let site = weft_types::Site::Layer { layer: 1, module: Module::Down };
    assert_eq!(*lowered.at(site).unwrap().a.data, *down.data);
    // The same, unpacked.
    let unpacked = dir.path().join("unpacked");
    fs::create_dir(&unpacked).unwrap();
    for (name, bytes) in files {
        fs::write(unpacked.join(name), bytes).unwrap();
    }
    let again = dir.path().join("again");
    convert(&unpacked, Some(&base), &again).unwrap();
    same(lowered, read_lowered(&again, &base.spec).unwrap());
}

#[test]
fn other_nemo_archives_are_refused_with_what_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let spec = base(dir.path()).spec;
    let (_, canonical) = nemo(&spec, nemo_name);
    let (_, fused) = nemo(&spec, |name| {
        nemo_name(name).replace("lora_unfused_kqv_adapter.q_adapter", "lora_kqv_adapter")
    });
    let good = torch_bytes(&canonical);
    let with = |from: &str, to: &str| NEMO_CONFIG.replace(from, to);
    let cases: [(String, &str, &[u8], &str); 8] = [
        (NEMO_CONFIG.into(), "model_weights.ckpt", &torch_bytes(&fused), "q, k and v together"),
        (NEMO_CONFIG.into(), "mp_rank_00/model_weights.ckpt", &good, "several ranks"),
        (NEMO_CONFIG.into(), "model_weights/metadata.json", b"{}", "distributed checkpoint"),
        (
            with("size: 1\np", "size: 2\np"),
            "model_weights.ckpt",
            &good,
            "tensor_model_parallel_size",
        ),
        (with("lora\n", "ptuning\n"), "model_weights.ckpt", &good, "ptuning"),
        (with("adapter_dim: 4", "adapter_dim: 5"), "model_weights.ckpt", &good, "adapter_dim"),
        (with("peft:", "other:"), "model_weights.ckpt", &good, "no peft section"),
        ("a: [".into(), "model_weights.ckpt", &good, "model_config.yaml"),
    ];
    for (index, (config, name, weights, words)) in cases.iter().enumerate() {
        let path = dir.path().join(format!("{index}.nemo"));
        fs::write(&path, tar_of(&[("model_config.yaml", config.as_bytes()), (name, weights)]))
            .unwrap();
        let out = dir.path().join("out");
        let error = convert(&path, None, &out).unwrap_err().to_string();
        assert!(error.contains(words), "{words}: {error}");
        assert!(!out.exists());
    }
}

#[test]
fn inputs_that_are_nothing_or_done_already_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let base = base(dir.path());
    let peft = dir.path().join("peft");
    RandomAdapter::default().write(&base.spec, &peft).unwrap();
    let out = dir.path().join("out");
    let refused = |input: &Path, out: &Path, base: Option<&ModelConfig>| {
        convert(input, base, out).unwrap_err().to_string()
    };
    assert!(refused(&peft, &out, None).contains("already"));
    assert!(refused(&peft, &dir.path().join("a.gguf"), None).contains("--base"));
    let file = |name: &str, bytes: &[u8]| {
        let path = dir.path().join(name);
        fs::write(&path, bytes).unwrap();
        path
    };
    assert!(
        refused(&file("a.bin", &torch_bytes(&two_tensors())), &out, None).contains("directory")
    );
    assert!(refused(&file("a.gz", &[0x1f, 0x8b, 8, 0]), &out, None).contains("gunzip"));
    assert!(refused(&file("a.txt", b"hello"), &out, None).contains("none of"));
    assert!(refused(&dir.path().join("nowhere"), &out, None).contains("nowhere"));
    let model = weft_gguf::GgufWriter::new().str("general.architecture", "llama");
    let mut bytes = Vec::new();
    model.write_to(&mut bytes).unwrap();
    assert!(refused(&file("model.gguf", &bytes), &out, None).contains("no LoRA adapter"));
}

#[test]
fn a_state_dict_of_torch_is_read() {
    let tensors = two_tensors();
    let read = read_all(&torch_bytes(&tensors)).unwrap();
    assert_eq!(read.len(), 2);
    for tensor in &tensors {
        let got = &read[&tensor.name];
        assert_eq!((&got.shape, &got.data), (&tensor.shape, &tensor.data));
    }
    assert_eq!(read["b"].dtype, Dtype::Bf16);
}

/// Storage 0 has six floats.
fn pickle_of(rebuild: &str) -> Vec<u8> {
    let mut out = b"\x80\x02ccollections\nOrderedDict\n)R(X\x01\x00\x00\x00tctorch._utils\n\
        _rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000\
        X\x03\x00\x00\x00cpuK\x06tQ"
        .to_vec();
    for word in rebuild.split_whitespace() {
        match word {
            "(" => out.push(b'('),
            ")" => out.push(b't'),
            number => out.extend([b'K', number.parse().unwrap()]),
        }
    }
    // The versions of modules, as state_dict() attaches them.
    out.extend(
        b"\x89ccollections\nOrderedDict\n)RtRu}X\x09\x00\x00\x00_metadataccollections\n\
        OrderedDict\n)Rsb.",
    );
    out
}

fn one_tensor(rebuild: &str) -> std::result::Result<FileTensor, String> {
    let floats: Vec<u8> = (0..6).flat_map(|i| (i as f32).to_le_bytes()).collect();
    let mut read = read_all(&archive(&pickle_of(rebuild), &[&floats]))?;
    Ok(read.remove("t").unwrap())
}

#[test]
fn strides_and_offsets_are_followed() {
    let floats = |rebuild: &str| {
        let tensor = one_tensor(rebuild).unwrap();
        crate::matrix::decode(&tensor.data, tensor.dtype)
    };
    assert_eq!(floats("0 ( 2 3 ) ( 3 1 )"), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
    // A transposed view.
    assert_eq!(floats("0 ( 3 2 ) ( 1 3 )"), [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]);
    assert_eq!(floats("4 ( 2 ) ( 1 )"), [4.0, 5.0]);
    assert_eq!(floats("1 ( 1 2 ) ( 9 2 )"), [1.0, 3.0]);
    assert_eq!(floats("0 ( 0 7 ) ( 7 1 )"), [0.0; 0]);
}

#[test]
fn tensors_that_do_not_lie_in_their_storage_are_refused() {
    for rebuild in [
        "5 ( 2 ) ( 1 )",
        "0 ( 7 ) ( 1 )",
        "0 ( 2 3 ) ( 4 1 )",
        // As many elements as one likes from one.
        "0 ( 255 255 ) ( 0 0 )",
        "0 ( 2 ) ( 1 1 )",
    ] {
        let error = one_tensor(rebuild).unwrap_err();
        assert!(error.contains("does not lie"), "{rebuild}: {error}");
    }
    let error = read_all(&archive(&pickle_of("0 ( 2 ) ( 1 )"), &[&[0; 20]])).unwrap_err();
    assert!(error.contains("20 bytes"), "{error}");
    let error = read_all(&archive(&pickle_of("0 ( 2 ) ( 1 )"), &[])).unwrap_err();
    assert!(error.contains("data/0"), "{error}");
}

#[test]
fn a_pickle_that_calls_something_is_refused_by_its_name() {
    let calls: [(&[u8], &str); 6] = [
        (b"\x80\x02cos\nsystem\nX\x02\x00\x00\x00ls\x85R.", "os.system"),
        (b"cbuiltins\neval\n(X\x01\x00\x00\x001tR.", "builtins.eval"),
        (b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x02ls\x85R.", "posix.system"),
        (b"ctorch._utils\n_rebuild_parameter\n.", "_rebuild_parameter"),
        (b"ctorch\nLongStorage\n.", "LongStorage"),
        // INST and OBJ, the old ways.
        (b"(ios\nsystem\n.", "instruction 0x69"),
    ];
    for (pickle, name) in calls {
        let error = read_pickle(pickle).unwrap_err();
        assert!(error.contains(name), "{name}: {error}");
    }
}

#[test]
fn deep_nesting_and_wrong_kinds_are_refused_without_recursion() {
    let mut deep = b"\x80\x02)".to_vec();
    deep.resize(2_000_000, 0x85);
    deep.push(b'.');
    assert!(read_pickle(&deep).is_err());
    for pickle in [
        b".".as_slice(),
        b"",
        b"}",
        b"}K\x01K\x02s.",
        b"}X\x01\x00\x00\x00aNs.",
        b"}(K\x01u.",
        b"tR",
        b"h\x00.",
        b"(q\x00.",
        b"\x8a\xff",
        b"X\xff\xff\xff\xff",
        b"c\xff\n\n.",
    ] {
        assert!(read_pickle(pickle).is_err(), "{pickle:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn truncated_archives_never_panic(cut in 0.0..1.0_f64) {
        let bytes = torch_bytes(&two_tensors());
        let length = (bytes.len() as f64 * cut) as usize;
        prop_assert!(read_all(&bytes[..length]).is_err());
    }

    #[test]
    fn mutated_archives_never_panic(
        changes in prop::collection::vec((0.0..1.0_f64, any::<u8>()), 1..8)
    ) {
        let mut bytes = torch_bytes(&two_tensors());
        for (at, byte) in changes {
            let index = (bytes.len() as f64 * at) as usize;
            bytes[index] = byte;
        }
        let _ = read_all(&bytes);
    }

    #[test]
    fn mutated_pickles_give_tensors_within_their_storages_or_a_sentence(
        changes in prop::collection::vec((0.0..1.0_f64, any::<u8>()), 1..6)
    ) {
        let tensors = two_tensors();
        let mut pickle = state_dict_pickle(&tensors);
        for (at, byte) in changes {
            let index = (pickle.len() as f64 * at) as usize;
            pickle[index] = byte;
        }
        let storages: Vec<&[u8]> = tensors.iter().map(|tensor| &*tensor.data).collect();
        if let Ok(read) = read_all(&archive(&pickle, &storages)) {
            for tensor in read.values() {
                let count: usize = tensor.shape.iter().product();
                prop_assert_eq!(count * tensor.dtype.size(), tensor.data.len());
            }
        }
    }

    #[test]
    fn random_pickles_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = read_pickle(&bytes);
    }
}

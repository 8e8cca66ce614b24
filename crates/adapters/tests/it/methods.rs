//! Adapters of every method, made by peft (`scripts/golden/tiny_methods.py`): lowered and applied in
//! double precision they give peft's logits.

use crate::reference::{Reference, base_of, golden};
use serde_json::Value;
use std::path::Path;
use weft_adapters::{ForBase, LoadLimits, load_peft_dir, lower_peft_bytes};
use weft_testkit::golden::GoldenFile;
use weft_testkit::tiny_llama_spec;
use weft_types::{LoweredAdapter, Site};

const LIMITS: LoadLimits = LoadLimits { max_lora_rank: 512 };

fn load(name: &str) -> (Reference, LoweredAdapter) {
    let dir = golden("methods").join(name);
    let base = Reference::open(&base_of(&dir.join("golden.safetensors")));
    let for_base = ForBase { spec: &base.spec, weights: Some(&base) };
    let lowered = load_peft_dir(&dir, for_base, &LIMITS);
    let lowered = lowered.unwrap_or_else(|error| panic!("{error}"));
    (base, lowered)
}

/// Root mean square of the difference over that of the wanted values.
fn relative_error(got: &[f64], want: &[f32]) -> f64 {
    assert_eq!(got.len(), want.len());
    let square =
        |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>();
    let error = square(&mut got.iter().zip(want).map(|(got, want)| got - f64::from(*want)));
    (error / square(&mut want.iter().map(|want| f64::from(*want)))).sqrt()
}

/// The largest error over the prompts of a golden file.
fn error_of(name: &str, base: &Reference, adapter: &LoweredAdapter) -> f64 {
    let file = GoldenFile::open(&golden("methods").join(name).join("golden.safetensors")).unwrap();
    let errors = (0..3).map(|i| {
        let tokens = &file.i32(&format!("tokens.{i}")).values;
        let tokens: Vec<u32> = tokens.iter().map(|&token| token as u32).collect();
        let want = &file.f32(&format!("logits.{i}")).values;
        relative_error(&base.logits(adapter, &tokens), want)
    });
    errors.fold(0.0, f64::max)
}

#[test]
fn every_method_gives_the_logits_of_peft() {
    let mut names: Vec<_> = golden("methods")
        .read_dir()
        .unwrap()
        .map(|entry| entry.unwrap())
        .filter(|entry| entry.path().is_dir())
        .map(|entry| entry.file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert!(names.len() >= 28, "{names:?}");
    let mut wrong = Vec::new();
    for name in &names {
        let (base, lowered) = load(name);
        let error = error_of(name, &base, &lowered);
        println!("{name}: rank {}, error {error:.1e}", lowered.max_rank());
        if error > 2e-5 {
            wrong.push(format!("{name}: {error:.1e}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:?}");
}

#[test]
fn what_a_method_needs_of_the_base_is_asked_for_and_missed() {
    let needy = ["dora", "bias-all", "trained-tokens", "saved-both"];
    for name in needy {
        let dir = golden("methods").join(name);
        let base = Reference::open(&base_of(&dir.join("golden.safetensors")));
        let error = load_peft_dir(&dir, &base.spec, &LIMITS).unwrap_err().to_string();
        assert!(error.contains("needs the base's weights"), "{error}");
    }
    // Others do without.
    for name in ["adalora", "vera-drawn", "ia3", "loha", "lokr", "prefix-tuning", "houlsby"] {
        let dir = golden("methods").join(name);
        let base = Reference::open(&base_of(&dir.join("golden.safetensors")));
        load_peft_dir(&dir, &base.spec, &LIMITS).unwrap();
    }
}

#[test]
fn pruned_ranks_of_adalora_are_dropped() {
    let (_, lowered) = load("adalora");
    let ranks: Vec<_> = lowered.low_rank.iter().map(|update| update.rank()).collect();
    assert!(ranks.iter().all(|&rank| (1..6).contains(&rank)), "{ranks:?}");
    assert!(ranks.iter().any(|rank| *rank != ranks[0]), "{ranks:?}");
}

#[test]
fn the_shared_matrix_of_vera_is_the_same_bytes_in_all_modules_of_a_width() {
    let (base, lowered) = load("vera");
    let narrow = lowered.low_rank.iter().filter(|update| update.a.cols == base.spec.hidden_size);
    let narrow: Vec<_> = narrow.collect();
    assert!(narrow.len() > 2);
    assert!(narrow.iter().all(|update| update.a.data == narrow[0].a.data));
    assert!(narrow.iter().any(|update| update.a.row_scales != narrow[0].a.row_scales));
}

#[test]
fn trained_tokens_cost_the_head_as_many_ranks_as_there_are() {
    for (name, rank) in [("trained-tokens", 4), ("trained-tokens-both", 2), ("trainable-tokens", 4)]
    {
        let (_, lowered) = load(name);
        assert_eq!(lowered.at(Site::LmHead).map(|update| update.rank()), Some(rank), "{name}");
        assert_eq!(lowered.token_rows.unwrap().tokens[..], [7, 12, 41, 300], "{name}");
    }
    assert!(load("trained-tokens-untied").1.at(Site::LmHead).is_none());
}

/// What an adapter is refused with below a rank.
fn refusal_at(name: &str, max_lora_rank: usize) -> String {
    let dir = golden("methods").join(name);
    let base = Reference::open(&base_of(&dir.join("golden.safetensors")));
    let for_base = ForBase { spec: &base.spec, weights: Some(&base) };
    load_peft_dir(&dir, for_base, &LoadLimits { max_lora_rank }).unwrap_err().to_string()
}

#[test]
fn ranks_that_a_method_grows_to_are_named_with_the_flag() {
    for (name, max, words) in [
        ("loha", 15, "rank 16, the square of LoHa's rank 4"),
        ("lokr", 15, "the product of the ranks"),
        ("saved-both", 63, "rank 64 where lm_head was trained"),
        ("vera", 15, "rank 16"),
        ("houlsby", 3, "rank 4 (hidden size / reduction_factor)"),
    ] {
        let error = refusal_at(name, max);
        assert!(error.contains(words), "{error}");
        assert!(error.ends_with(&format!("--max-lora-rank {max}")), "{error}");
    }
}

/// An adapter of the golden files with its configuration changed.
fn with_config(name: &str, edit: impl FnOnce(&mut serde_json::Map<String, Value>)) -> String {
    let dir = golden("methods").join(name);
    let base = Reference::open(&base_of(&dir.join("golden.safetensors")));
    let read = |file: &str| std::fs::read(dir.join(file)).ok();
    let tensors =
        read("adapter_model.safetensors").or_else(|| read("adapter.safetensors")).unwrap();
    let Value::Object(mut config) =
        serde_json::from_slice(&read("adapter_config.json").unwrap()).unwrap()
    else {
        panic!("{name}");
    };
    edit(&mut config);
    let config = serde_json::to_vec(&config).unwrap();
    let for_base = ForBase { spec: &base.spec, weights: Some(&base) };
    match lower_peft_bytes(&config, &tensors, for_base, &LIMITS) {
        Ok(_) => "loads".to_owned(),
        Err(refusal) => refusal.to_string(),
    }
}

#[test]
fn configurations_that_contradict_their_tensors_are_refused_by_key_or_tensor() {
    type Edit = fn(&mut serde_json::Map<String, Value>);
    fn hub(config: &mut serde_json::Map<String, Value>, key: &str, value: Value) {
        config["config"].as_object_mut().unwrap().insert(key.to_owned(), value);
    }
    let cases: &[(&str, Edit, &[&str])] = &[
        ("dora", |c| drop(c.insert("use_dora".into(), false.into())), &["DoRA", "use_dora"]),
        ("lora-bias", |c| drop(c.insert("lora_bias".into(), false.into())), &["lora_bias"]),
        (
            "lora-bias",
            |c| drop(c.insert("use_dora".into(), true.into())),
            &["use_dora", "lora_bias"],
        ),
        ("bias-all", |c| drop(c.insert("bias".into(), "none".into())), &["biases", "none"]),
        ("adalora", |c| drop(c.insert("init_r".into(), 5.into())), &["loads"]),
        ("adalora", |c| drop(c.remove("rank_pattern")), &["shape", "init_r"]),
        ("vera", |c| drop(c.insert("save_projection".into(), false.into())), &["save_projection"]),
        ("vera-drawn", |c| drop(c.insert("save_projection".into(), true.into())), &["vera_A"]),
        ("vera", |c| drop(c.insert("bias".into(), "all".into())), &["biases", "VeRA"]),
        ("ia3", |c| drop(c.insert("feedforward_modules".into(), Value::Null)), &["ia3_l", "shape"]),
        ("loha", |c| drop(c.insert("r".into(), 3.into())), &["hada_w1", "shape"]),
        ("lokr", |c| drop(c.insert("r".into(), 3.into())), &["lokr", "rank 3"]),
        ("prompt-tuning", |c| drop(c.insert("num_virtual_tokens".into(), 4.into())), &["shape"]),
        ("prompt-tuning", |c| drop(c.insert("token_dim".into(), 4.into())), &["token_dim 4"]),
        ("prefix-tuning", |c| drop(c.insert("num_layers".into(), 3.into())), &["num_layers 3"]),
        (
            "prefix-tuning",
            |c| drop(c.insert("num_virtual_tokens".into(), 512.into())),
            &["512 virtual tokens", "context"],
        ),
        (
            "trained-tokens",
            |c| drop(c.insert("trainable_token_indices".into(), serde_json::json!([1, 2, 3, 320]))),
            &["token 320", "resized"],
        ),
        (
            "trained-tokens",
            |c| drop(c.insert("trainable_token_indices".into(), serde_json::json!([1, 2, 1, 3]))),
            &["token 1 twice"],
        ),
        (
            "trained-tokens",
            |c| drop(c.insert("trainable_token_indices".into(), Value::Null)),
            &["trainable_tokens_delta", "trainable_token_indices"],
        ),
        (
            "saved-both",
            |c| drop(c.insert("modules_to_save".into(), serde_json::json!(["norm"]))),
            &["\"norm\"", "modules_to_save", "norms"],
        ),
        (
            "saved-both",
            |c| drop(c.insert("modules_to_save".into(), Value::Null)),
            &["full weights", "modules_to_save"],
        ),
        (
            "pissa-converted",
            |c| drop(c.insert("init_lora_weights".into(), "pissa".into())),
            &["path_initial_model_for_weight_conversion"],
        ),
        ("houlsby", |c| hub(c, "ln_before", true.into()), &["ln_before"]),
        ("houlsby", |c| hub(c, "is_parallel", true.into()), &["is_parallel"]),
        ("houlsby", |c| hub(c, "use_gating", true.into()), &["use_gating"]),
        ("houlsby", |c| hub(c, "phm_layer", true.into()), &["phm_layer"]),
        ("houlsby", |c| hub(c, "inv_adapter", "nice".into()), &["inv_adapter"]),
        ("houlsby", |c| hub(c, "original_ln_after", false.into()), &["original_ln_after"]),
        ("houlsby", |c| hub(c, "non_linearity", "leakyrelu".into()), &["non_linearity"]),
        ("houlsby", |c| hub(c, "mh_adapter", false.into()), &["attention_adapters", "mh_adapter"]),
        ("houlsby", |c| hub(c, "reduction_factor", 8.into()), &["reduction_factor", "shape"]),
        ("houlsby", |c| hub(c, "new_key", 1.into()), &["new_key", "does not know"]),
        ("houlsby", |c| hub(c, "architecture", "lora".into()), &["architecture", "lora"]),
        ("houlsby", |c| drop(c.remove("version")), &["version"]),
        ("pfeiffer", |c| hub(c, "residual_before_ln", false.into()), &["residual_before_ln"]),
        (
            "pfeiffer",
            |c| drop(c.insert("model_type".into(), "bert".into())),
            &["model_type", "bert"],
        ),
    ];
    let mut wrong = Vec::new();
    for (name, edit, words) in cases {
        let message = with_config(name, edit);
        if !words.iter().all(|word| message.contains(word)) {
            wrong.push(format!("{name} {words:?}: {message}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// What a `peft_type` alone leads to.
fn refusal_of_type(method: &str) -> String {
    let config = format!(r#"{{"peft_type": {method:?}}}"#);
    lower_peft_bytes(config.as_bytes(), &[], &tiny_llama_spec(), &LIMITS).unwrap_err().to_string()
}

#[test]
fn every_method_of_peft_is_served_or_refused_with_its_reason() {
    let path = golden("peft_methods.json");
    let list: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let methods = list["methods"].as_object().unwrap();
    assert!(methods.len() > 20, "{}", methods.len());
    let (mut served, mut refused) = (Vec::new(), Vec::new());
    for (method, keys) in methods {
        let refusal = refusal_of_type(method);
        assert!(!refusal.contains("does not know"), "{method}: {refusal}");
        if refusal.starts_with("has peft_type") {
            assert!(refusal.contains(", but that "), "{method}: {refusal}");
            refused.push(method);
            continue;
        }
        served.push(method);
        // Every key of its configuration is known: null is the default of all.
        for key in keys.as_array().unwrap() {
            let config = format!(r#"{{"peft_type": {method:?}, {key}: null}}"#);
            let config = if key == "peft_type" { String::from("{}") } else { config };
            let refusal = lower_peft_bytes(config.as_bytes(), &[], &tiny_llama_spec(), &LIMITS);
            let refusal = refusal.unwrap_err().to_string();
            assert!(!refusal.contains("does not know"), "{method}: {refusal}");
        }
    }
    println!("{} served: {served:?}\n{} refused: {refused:?}", served.len(), refused.len());
    let expected = [
        "ADALORA",
        "IA3",
        "LOHA",
        "LOKR",
        "LORA",
        "PREFIX_TUNING",
        "PROMPT_TUNING",
        "P_TUNING",
        "TRAINABLE_TOKENS",
        "VERA",
    ];
    assert_eq!(served, expected);
}

#[test]
fn pickles_of_adapterhub_are_refused_with_the_call_that_converts_them() {
    let dir = tempfile::tempdir().unwrap();
    let houlsby = golden("methods/houlsby");
    std::fs::copy(houlsby.join("adapter_config.json"), dir.path().join("adapter_config.json"))
        .unwrap();
    std::fs::write(dir.path().join("pytorch_adapter.bin"), b"\x80\x02").unwrap();
    let load = |dir: &Path| load_peft_dir(dir, &tiny_llama_spec(), &LIMITS).map(drop);
    let error = load(dir.path()).unwrap_err().to_string();
    assert!(error.contains("save_adapter(path, name, use_safetensors=True)"), "{error}");
    std::fs::write(dir.path().join("head_config.json"), b"{}").unwrap();
    let error = load(dir.path()).unwrap_err().to_string();
    assert!(error.contains("with_head=False"), "{error}");
}

"""Random LoRA configurations and what peft makes of them: module, rank and scaling.

Writes tests/golden/peft_configs.json: a list of {"config": adapter_config.json as saved, without its
nulls, "modules": {name: [rank, scaling]}}. The adapters are saved and loaded again, because the order
of patterns is that of the file. Needs torch, transformers and peft.

    python scripts/golden/make_peft_configs.py
"""

import json
import os
import random
import tempfile
import warnings
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
warnings.filterwarnings("ignore")

import peft  # noqa: E402
from transformers import LlamaConfig, LlamaForCausalLM  # noqa: E402

NUM_CASES = 100
OUT = Path(__file__).parents[2] / "tests" / "golden" / "peft_configs.json"
MODULES = "q_proj k_proj v_proj o_proj gate_proj up_proj down_proj embed_tokens lm_head".split()
FULL_NAMES = ["layers.0.mlp.up_proj", "model.layers.1.self_attn.o_proj", "1.self_attn.k_proj"]
TARGET_PATTERNS = [
    "all-linear",
    "all-LINEAR",
    r".*\.(q|v)_proj",
    r"model\.layers\.1\..*_proj",
    r".*(self_attn|mlp).*(proj)",
    r"(?!.*lm_head).*_proj",
    r"(.*embed_tokens)|(.*q_proj)",
    r"(?:.*?(?:language|text|layers).*?(?:self_attn|mlp).*?(?:q_proj|k_proj|up_proj).*?)",
]
EXCLUDES = [
    ["q_proj"],
    ["layers.1.self_attn.q_proj", "lm_head"],
    ["mlp"],
    "embed_tokens",
    r".*layers\.0.*",
    r"model\.layers\.1\.mlp\.(up|down)_proj",
]
PATTERNS = """q_proj k_proj v_proj lm_head embed_tokens q.proj .*_proj [a-z]+_proj (q|v)_proj
    self_attn.(q|k)_proj mlp\\..* layers.1.*.down_proj 1.mlp.gate_proj ^model.layers.0.*
    layers.0.self_attn.q_proj model.layers.1.mlp.up_proj model.layers.[01].self_attn.v_proj
    (?!.*q_proj).*_proj up_proj|down_proj""".split()


def model():
    sizes = dict(hidden_size=64, intermediate_size=128, vocab_size=320, num_hidden_layers=2)
    heads = dict(num_attention_heads=4, num_key_value_heads=2, head_dim=16)
    return LlamaForCausalLM(LlamaConfig(**sizes, **heads))


def random_config(rng):
    config = {"r": rng.randint(1, 9), "lora_alpha": rng.choice([4, 7, 16])}
    if rng.random() < 0.35:
        config["target_modules"] = rng.choice(TARGET_PATTERNS)
    else:
        config["target_modules"] = rng.sample(MODULES, rng.randint(1, 5))
        if rng.random() < 0.3:
            config["target_modules"].append(rng.choice(FULL_NAMES))
        if rng.random() < 0.4:
            config["layers_to_transform"] = rng.choice([0, 1, [1], [0, 1], []])
            if config["layers_to_transform"] != [] and rng.random() < 0.5:
                config["layers_pattern"] = rng.choice(["layers", ["layers"], "lay.rs", ["h", "layers"]])
    if rng.random() < 0.3:
        config["exclude_modules"] = rng.choice(EXCLUDES)
    for key, values in [("rank_pattern", range(1, 10)), ("alpha_pattern", [1, 2, 8, 32])]:
        if rng.random() < 0.5:
            names = rng.sample(PATTERNS, rng.randint(1, 4))
            config[key] = {name: rng.choice(values) for name in names}
    config["use_rslora"] = rng.random() < 0.3
    return config


def outcome(config):
    """The saved configuration and its modules, or None where peft itself refuses."""
    with tempfile.TemporaryDirectory() as directory:
        try:
            lora = peft.LoraConfig(task_type="CAUSAL_LM", **config)
            peft.get_peft_model(model(), lora).save_pretrained(directory, save_embedding_layers=False)
            loaded = peft.PeftModel.from_pretrained(model(), directory).base_model.model
        except (ValueError, RuntimeError):
            # RuntimeError: the file has the patterns sorted, and another one comes first now.
            return None
        saved = json.loads((Path(directory) / "adapter_config.json").read_text())
    saved = {key: value for key, value in saved.items() if value is not None}
    # Sets, saved in an order that changes from run to run.
    for key in ["target_modules", "exclude_modules"]:
        if isinstance(saved.get(key), list):
            saved[key].sort()
    modules = {
        name: [module.r["default"], module.scaling["default"]]
        for name, module in loaded.named_modules()
        if isinstance(module, peft.tuners.lora.LoraLayer)
    }
    return {"config": saved, "modules": modules}


def main():
    rng, cases = random.Random(5), []
    while len(cases) < NUM_CASES:
        case = outcome(random_config(rng))
        if case is not None:
            cases.append(case)
    lines = ",\n".join(json.dumps(case) for case in cases)
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(f"[\n{lines}\n]\n")
    print(f"{len(cases)} cases, {OUT.stat().st_size} bytes")


if __name__ == "__main__":
    main()

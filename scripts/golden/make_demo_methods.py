"""Adapters of several methods on the demo base, made and saved by peft, with golden logits.

    python scripts/golden/make_demo_methods.py --gguf SmolLM2-135M-Instruct.Q4_1.gguf --out tests/golden

The base is dequantized, as for make_demo_base.py. Writes demo_methods/<name>/ with the adapter (few modules,
random weights) and golden.safetensors: `tokens` (i32) and `logits` (f32 [vocab], of the last position).
"""

import argparse
import pathlib
import shutil

import torch
from peft import (
    IA3Config,
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptTuningConfig,
    VeraConfig,
    get_peft_model,
)
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import tiny_methods

TASK = dict(task_type="CAUSAL_LM")
FIRST_AND_LAST = r".*layers\.(0|29)\.self_attn\.(q|v)_proj"
METHODS = {
    "dora": LoraConfig(**TASK, r=2, lora_alpha=4, use_dora=True, target_modules=FIRST_AND_LAST),
    "vera": VeraConfig(**TASK, r=4, target_modules=FIRST_AND_LAST, projection_prng_key=7),
    "ia3": IA3Config(
        **TASK,
        target_modules=r".*layers\.[0-9]\.(self_attn\.k_proj|self_attn\.v_proj|mlp\.down_proj)",
        feedforward_modules=r".*down_proj",
    ),
    "loha": LoHaConfig(**TASK, r=2, alpha=2, target_modules=FIRST_AND_LAST),
    "lokr": LoKrConfig(**TASK, r=2, alpha=2, target_modules=FIRST_AND_LAST),
    "prompt-tuning": PromptTuningConfig(**TASK, num_virtual_tokens=5),
    "prefix-tuning": PrefixTuningConfig(**TASK, num_virtual_tokens=2),
}
TEXT = "A loom holds many long threads side by side, and the weaver"


def last_logits(model, ids):
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).logits[0, -1].contiguous()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gguf", type=pathlib.Path, required=True)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("tests/golden"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    source = {"pretrained_model_name_or_path": args.gguf.parent, "gguf_file": args.gguf.name}
    ids = AutoTokenizer.from_pretrained(**source)(TEXT, add_special_tokens=False)["input_ids"]

    def load():
        model = AutoModelForCausalLM.from_pretrained(
            **source, dtype=torch.float32, attn_implementation="eager"
        ).eval()
        # peft copies it to the configuration; a path of this machine has no place there.
        model.name_or_path = model.config._name_or_path = "smollm2-135m-instruct"
        return model

    before = last_logits(load(), ids)
    for seed, (name, config) in enumerate(METHODS.items()):
        path = args.out / "demo_methods" / name
        shutil.rmtree(path, ignore_errors=True)
        model = get_peft_model(load(), config)
        tiny_methods.randomise(model, seed)
        model.save_pretrained(path)
        (path / "README.md").unlink(missing_ok=True)
        logits = last_logits(PeftModel.from_pretrained(load(), path).eval(), ids)
        tensors = {"tokens": torch.tensor(ids, dtype=torch.int32), "logits": logits}
        save_file(tensors, path / "golden.safetensors")
        change = float((logits - before).norm() / before.norm())
        size = sum(file.stat().st_size for file in path.iterdir())
        print(f"{name}: the logits change by {change:.3f}; {size} bytes")
        assert change > 0.02, name


if __name__ == "__main__":
    main()

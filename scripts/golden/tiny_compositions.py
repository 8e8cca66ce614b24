"""Several of the golden adapters active at once, each with a scale: golden logits by peft.

The metadata of a golden file: `base`, the name of the model's directory, and `formula`, what is added up.
"""

import peft
from peft import PeftModel
from peft.tuners.lora import LoraLayer

import oracle
import tiny_models
import tiny_tokenizer

# name: (base, [(adapter, scale)])
COMPOSITIONS = {
    "two": ("tiny-llama", [("rank8-linears", 1.0), ("rank3-q-v", 1.0)]),
    "scaled": (
        "tiny-llama",
        [("rank16-rslora", 0.5), ("bf16", -0.75), ("embed-tokens", 2.0), ("layers-to-transform", 1.0)],
    ),
    "one": ("tiny-llama", [("rank-pattern", 0.25)]),
    "heads": ("tiny-mistral", [("lm-head", 0.5), ("lm-head-q", 1.5)]),
}


def formula(parts):
    """`a+0.5*b`"""
    return "+".join(name if scale == 1 else f"{scale}*{name}" for name, scale in parts)


def make(out):
    """Writes all of them below `out`/compositions; needs `out`/models and `out`/adapters."""
    (out / "compositions").mkdir(exist_ok=True)
    for name, (base, parts) in COMPOSITIONS.items():
        base_model = tiny_models.load(out / "models" / base)
        first, *others = [part for part, _ in parts]
        model = PeftModel.from_pretrained(base_model, out / "adapters" / first, adapter_name=first)
        for other in others:
            model.load_adapter(out / "adapters" / other, adapter_name=other)
        model.base_model.set_adapter([part for part, _ in parts])
        for module in model.modules():
            if isinstance(module, LoraLayer):
                for part, scale in parts:
                    if part in module.scaling:
                        module.scaling[part] *= scale
        path = out / "compositions" / f"{name}.safetensors"
        metadata = {"base": base, "formula": formula(parts)}
        oracle.write(path, model.eval(), tiny_tokenizer.prompts(), with_greedy=False, metadata=metadata)
        print(f"{name}: {metadata['formula']} on {base}, peft {peft.__version__}")

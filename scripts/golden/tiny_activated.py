"""Activated LoRA (aLoRA) on the tiny models: made and saved by peft, with golden logits.

The adapters are active from the begin of the last occurrence of their invocation tokens on: prompts
have them in the middle, twice, at the begin, at the end, and not at all.
"""

import shutil

import torch
from peft import LoraConfig, PeftModel, get_peft_model

import oracle
import tiny_adapters
import tiny_models
import tiny_tokenizer

INVOCATION = [1, 97, 98]

# name: (what it shows, base, options of LoraConfig)
ADAPTERS = {
    "linears": (
        "the seven linears",
        "tiny-llama",
        dict(r=8, lora_alpha=16, target_modules=tiny_adapters.LINEARS),
    ),
    "lm-head": (
        "lm_head and o, of a head that is not tied",
        "tiny-mistral",
        dict(r=4, lora_alpha=8, target_modules=["lm_head", "o_proj"]),
    ),
}


def prompts():
    """With the invocation in the middle, twice, at the begin, at the end, and broken: absent."""
    _, text, chat = tiny_tokenizer.prompts()
    return [
        [*chat[:21], *INVOCATION, *text[:9]],
        [*text[:3], *INVOCATION, *chat[:17], *INVOCATION, *text[3:8]],
        [*INVOCATION, *text],
        [*chat, *INVOCATION],
        [*text, *INVOCATION[:2], 7, *INVOCATION[1:]],
    ]


def make_one(out, name, seed):
    """Saves one adapter and its golden file."""
    _, base, options = ADAPTERS[name]
    path = out / "activated" / name
    shutil.rmtree(path, ignore_errors=True)
    base_model = tiny_models.load(out / "models" / base)
    base_model.name_or_path = base_model.config._name_or_path = base
    config = LoraConfig(task_type="CAUSAL_LM", alora_invocation_tokens=INVOCATION, **options)
    model = get_peft_model(base_model, config)
    tiny_adapters.randomise(model, seed)
    model.save_pretrained(path, save_embedding_layers=False)
    (path / "README.md").unlink(missing_ok=True)

    base_model = tiny_models.load(out / "models" / base)
    before = [oracle.logits(base_model, ids) for ids in prompts()]
    adapted = PeftModel.from_pretrained(base_model, path).eval()
    golden = path / "golden.safetensors"
    oracle.write(golden, adapted, prompts(), with_greedy=False, metadata={"base": base})
    for ids, old in zip(prompts(), before):
        new = oracle.logits(adapted, ids)
        changed = (new - old).norm(dim=1) > 1e-6 * old.norm(dim=1)
        first = int(changed.nonzero()[0]) if changed.any() else None
        print(f"{name} on {base}: {len(ids)} tokens, the first that changes is {first}")


def make(out):
    """Writes all of them below `out`/activated; needs `out`/models."""
    for seed, name in enumerate(ADAPTERS):
        make_one(out, name, 100 + seed)
    lines = [f"* `{name}` (base `{base}`): {what}." for name, (what, base, _) in ADAPTERS.items()]
    text = "# Activated adapters\n\nMade with peft by `scripts/golden/tiny_activated.py`; random weights.\n\n"
    (out / "activated" / "README.md").write_text(text + "\n".join(lines) + "\n")

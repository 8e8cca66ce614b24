"""LoRA adapters of every shape on the tiny models: made and saved by peft, with golden logits.

The golden logits come from the adapter as loaded again, so that they belong to what the files hold.
The metadata key `base` of each golden file is the name of the model's directory.
"""

import shutil

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer

import oracle
import tiny_models
import tiny_tokenizer

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
LINEARS = [*ATTENTION, "gate_proj", "up_proj", "down_proj"]
Q_V = ["q_proj", "v_proj"]
RANKS = {"q_proj": 2, "layers.1.mlp.up_proj": 9, "^model.layers.0.self_attn.o_proj": 5}
ALPHAS = {"v_proj": 1, "layers.0.mlp.down_proj": 32}

# name: (what it shows, base, options of LoraConfig)
ADAPTERS = {
    "rank1-q-v": ("rank 1 on q and v only", "tiny-llama", dict(r=1, lora_alpha=2, target_modules=Q_V)),
    "rank3-all-linear": (
        "rank 3, target_modules 'all-linear' (peft saves the expanded list)",
        "tiny-llama",
        dict(r=3, lora_alpha=5, target_modules="all-linear"),
    ),
    "rank8-linears": (
        "rank 8, the seven linears by name",
        "tiny-llama",
        dict(r=8, lora_alpha=16, target_modules=LINEARS),
    ),
    "rank16-rslora": (
        "rank 16 on attention, scaled by alpha / sqrt(rank)",
        "tiny-llama",
        dict(r=16, lora_alpha=8, target_modules=ATTENTION, use_rslora=True),
    ),
    "rank64-linears": (
        "rank 64, as wide as the model",
        "tiny-llama",
        dict(r=64, lora_alpha=64, target_modules=LINEARS),
    ),
    "rank256-q-down": (
        "rank 256, wider than the model",
        "tiny-llama",
        dict(r=256, lora_alpha=128, target_modules=["q_proj", "down_proj"]),
    ),
    "rank-pattern": (
        "rank_pattern: by module, by layer and by an anchored full name",
        "tiny-llama",
        dict(r=4, lora_alpha=8, target_modules=LINEARS, rank_pattern=RANKS),
    ),
    "alpha-pattern": (
        "alpha_pattern: by module and by layer",
        "tiny-llama",
        dict(r=4, lora_alpha=8, target_modules=LINEARS, alpha_pattern=ALPHAS),
    ),
    "both-patterns-rslora": (
        "rank_pattern and alpha_pattern together, with rslora",
        "tiny-llama",
        dict(
            r=4,
            lora_alpha=8,
            target_modules=LINEARS,
            rank_pattern=RANKS,
            alpha_pattern={**ALPHAS, "q_proj": 3},
            use_rslora=True,
        ),
    ),
    "layers-to-transform": (
        "layers_to_transform: only layer 1 has weights",
        "tiny-llama",
        dict(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "gate_proj"], layers_to_transform=[1]),
    ),
    "bf16": ("saved in bf16", "tiny-llama", dict(r=8, lora_alpha=16, target_modules=LINEARS)),
    "embed-tokens": (
        "embed_tokens, tied to the head that stays as it is; lora_embedding_A/B, no copy of the base",
        "tiny-llama",
        dict(r=6, lora_alpha=12, target_modules=["embed_tokens", *Q_V]),
    ),
    "lm-head": (
        "lm_head and embed_tokens; peft saves a copy of both base weights beside them",
        "tiny-mistral",
        dict(r=4, lora_alpha=8, target_modules=["lm_head", "embed_tokens", "o_proj"]),
    ),
    "regex": (
        "target_modules is a regular expression",
        "tiny-llama",
        dict(r=5, lora_alpha=10, target_modules=r".*layers\.1\.self_attn\.(q|k)_proj|.*\.gate_proj"),
    ),
    "biased-base": (
        "all linears of a base with biases",
        "tiny-llama-rope3",
        dict(r=8, lora_alpha=16, target_modules=LINEARS),
    ),
    "wide-heads": (
        "all linears of a base whose q is wider than the model",
        "tiny-qwen3",
        dict(r=8, lora_alpha=16, target_modules=LINEARS),
    ),
    "rank1-all-linear": (
        "rank 1, target_modules 'all-linear'",
        "tiny-llama",
        dict(r=1, lora_alpha=1, target_modules="all-linear"),
    ),
    "rank3-q-v": ("rank 3 on q and v only", "tiny-llama", dict(r=3, lora_alpha=6, target_modules=Q_V)),
    "rank8-rslora": (
        "rank 8, target_modules 'all-linear', scaled by alpha / sqrt(rank)",
        "tiny-llama",
        dict(r=8, lora_alpha=4, target_modules="all-linear", use_rslora=True),
    ),
    "rank16-mlp": (
        "rank 16 on the MLP only",
        "tiny-llama",
        dict(r=16, lora_alpha=32, target_modules=["gate_proj", "up_proj", "down_proj"]),
    ),
    "lm-head-q": (
        "lm_head and q, without a copy of the base",
        "tiny-mistral",
        dict(r=4, lora_alpha=8, target_modules=["lm_head", "q_proj"]),
    ),
}
WITHOUT_BASE_COPY = ["embed-tokens", "lm-head-q"]


def randomise(model, seed):
    """Fills A and B so that each update has about a third of the size of its weight."""
    rng = torch.Generator().manual_seed(seed)
    for _, module in model.named_modules():
        if not isinstance(module, LoraLayer):
            continue
        rank, scaling = module.r["default"], module.scaling["default"]
        base = module.get_base_layer().weight
        if "default" in module.lora_embedding_A:
            a, b = module.lora_embedding_A["default"], module.lora_embedding_B["default"]
        else:
            a, b = module.lora_A["default"].weight, module.lora_B["default"].weight
        size_a = 1.0 / base.shape[1] ** 0.5
        a.data = torch.randn(a.shape, generator=rng) * size_a
        size_b = 0.3 * float(base.std()) / (scaling * rank**0.5 * size_a)
        b.data = torch.randn(b.shape, generator=rng) * size_b


def modules(model):
    """What peft made: ranks and scalings, to be looked at."""
    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    ranks = sorted({module.r["default"] for module in layers})
    scalings = sorted({round(module.scaling["default"], 4) for module in layers})
    return f"{len(layers)} modules, ranks {ranks}, scalings {scalings}"


def make_one(out, name, seed):
    """Saves one adapter and its golden file."""
    _, base, options = ADAPTERS[name]
    path = out / "adapters" / name
    shutil.rmtree(path, ignore_errors=True)
    base_model = tiny_models.load(out / "models" / base)
    # peft copies it to the configuration; a path of this machine has no place there.
    base_model.name_or_path = base_model.config._name_or_path = base
    model = get_peft_model(base_model, LoraConfig(task_type="CAUSAL_LM", **options))
    randomise(model, seed)
    described = modules(model)
    if name == "bf16":
        model = model.to(torch.bfloat16)
    save_base = False if name in WITHOUT_BASE_COPY else "auto"
    model.save_pretrained(path, save_embedding_layers=save_base)
    (path / "README.md").unlink(missing_ok=True)

    base_model = tiny_models.load(out / "models" / base)
    prompts = tiny_tokenizer.prompts()
    before = [oracle.logits(base_model, ids) for ids in prompts]
    adapted = PeftModel.from_pretrained(base_model, path).eval()
    oracle.write(
        path / "golden.safetensors", adapted, prompts, with_greedy=False, metadata={"base": base}
    )
    after = [oracle.logits(adapted, ids) for ids in prompts]
    changes = [float((new - old).norm() / old.norm()) for old, new in zip(before, after)]
    assert min(changes) > 0.05, changes
    print(f"{name} on {base}: {described}; logits change by {min(changes):.2f} to {max(changes):.2f}")


def make(out):
    """Writes all of them below `out`/adapters; needs `out`/models."""
    for seed, name in enumerate(ADAPTERS):
        make_one(out, name, seed)
    lines = [f"* `{name}` (base `{base}`): {what}." for name, (what, base, _) in ADAPTERS.items()]
    text = "# Golden adapters\n\nMade with peft by `scripts/golden/tiny_adapters.py`; random weights.\n\n"
    (out / "adapters" / "README.md").write_text(text + "\n".join(lines) + "\n")

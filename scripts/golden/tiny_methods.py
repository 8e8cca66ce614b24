"""Adapters of every method that is served, on the tiny models: made and saved by peft, with golden logits.

As in `tiny_adapters.py`, the golden logits come from the adapter as loaded again. Weights are random, of
a size that changes the logits by a tenth and more. For AdapterHub's bottleneck adapters, whose library
does not install beside this transformers, the published forward of its Llama layers is written out here.
"""

import json
import shutil

import torch
from peft import (
    AdaLoraConfig,
    IA3Config,
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    TrainableTokensConfig,
    VeraConfig,
    get_peft_model,
)
from safetensors.torch import save_file

import oracle
import tiny_models
import tiny_tokenizer

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
MLP = ["gate_proj", "up_proj", "down_proj"]
LINEARS = [*ATTENTION, *MLP]
TASK = dict(task_type="CAUSAL_LM")
TOKENS = [7, 300, 41, 12]


def lora(**options):
    return LoraConfig(**TASK, **dict(dict(r=4, lora_alpha=8, target_modules=LINEARS), **options))


# name: (what it shows, base, configuration)
METHODS = {
    "dora": ("DoRA on all linears", "tiny-llama", lora(use_dora=True)),
    "dora-biased-base": ("DoRA where the base has biases", "tiny-llama-rope3", lora(use_dora=True)),
    "dora-rslora-lm-head": (
        "DoRA with rslora, also on the head",
        "tiny-mistral",
        lora(use_dora=True, use_rslora=True, target_modules=["lm_head", "q_proj", "down_proj"]),
    ),
    "lora-bias": ("lora_bias: B has a bias", "tiny-llama", lora(lora_bias=True)),
    "bias-all": ("bias='all' on a base with biases", "tiny-qwen2", lora(bias="all")),
    "bias-lora-only": (
        "bias='lora_only' on a base with biases",
        "tiny-llama-rope3",
        lora(bias="lora_only", target_modules=["q_proj", "down_proj"]),
    ),
    "adalora": (
        "AdaLoRA with some ranks pruned, and some singular values that are zero",
        "tiny-llama",
        AdaLoraConfig(**TASK, init_r=6, target_r=3, lora_alpha=12, target_modules=LINEARS, total_step=10),
    ),
    "vera": (
        "VeRA with its projections",
        "tiny-llama",
        VeraConfig(**TASK, r=16, target_modules=LINEARS, projection_prng_key=3),
    ),
    "vera-drawn": (
        "VeRA without its projections, which are drawn from the seed",
        "tiny-qwen3",
        VeraConfig(**TASK, r=12, target_modules=LINEARS, projection_prng_key=0xDEAD, save_projection=False),
    ),
    "ia3": (
        "IA3 on keys, values and MLP, the last as feed-forward",
        "tiny-llama",
        IA3Config(**TASK, target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"]),
    ),
    "ia3-biased-base": (
        "IA3 on all linears of a base with biases",
        "tiny-llama-rope3",
        IA3Config(**TASK, target_modules=LINEARS, feedforward_modules=["up_proj", "o_proj"]),
    ),
    "loha": (
        "LoHa of rank 4",
        "tiny-llama",
        LoHaConfig(**TASK, r=4, alpha=8, target_modules=LINEARS, rank_pattern={"q_proj": 2}),
    ),
    "lokr": (
        "LoKr with one factor whole and one decomposed",
        "tiny-llama",
        LoKrConfig(**TASK, r=2, alpha=4, target_modules=LINEARS),
    ),
    "lokr-both": (
        "LoKr with both factors decomposed",
        "tiny-llama",
        LoKrConfig(**TASK, r=2, alpha=2, target_modules=ATTENTION, decompose_both=True, decompose_factor=8),
    ),
    "lokr-whole": (
        "LoKr with both factors whole",
        "tiny-qwen3",
        LoKrConfig(**TASK, r=32, alpha=16, target_modules=["q_proj", "v_proj"], decompose_factor=4),
    ),
    "prompt-tuning": (
        "prompt tuning with 5 tokens",
        "tiny-llama",
        PromptTuningConfig(**TASK, num_virtual_tokens=5),
    ),
    "p-tuning": (
        "P-tuning with 7 tokens",
        "tiny-qwen2",
        PromptEncoderConfig(**TASK, num_virtual_tokens=7, encoder_hidden_size=32),
    ),
    "prefix-tuning": (
        "prefix tuning with 6 tokens",
        "tiny-llama",
        PrefixTuningConfig(**TASK, num_virtual_tokens=6),
    ),
    "prefix-projection": (
        "prefix tuning through a projection",
        "tiny-llama-rope3",
        PrefixTuningConfig(**TASK, num_virtual_tokens=3, prefix_projection=True, encoder_hidden_size=32),
    ),
    "trained-tokens": (
        "LoRA with trained tokens, which are the tied head's, too",
        "tiny-llama",
        lora(target_modules=["q_proj"], trainable_token_indices=TOKENS),
    ),
    "trained-tokens-untied": (
        "LoRA with trained tokens of the embedding of an untied base",
        "tiny-mistral",
        lora(target_modules=["q_proj"], trainable_token_indices={"embed_tokens": TOKENS}),
    ),
    "trained-tokens-both": (
        "LoRA with trained tokens of embedding and head of an untied base",
        "tiny-mistral",
        lora(target_modules=["q_proj"], trainable_token_indices={"embed_tokens": TOKENS, "lm_head": [5, 9]}),
    ),
    "trainable-tokens": (
        "trained tokens only",
        "tiny-qwen2",
        TrainableTokensConfig(**TASK, token_indices=TOKENS, target_modules=["embed_tokens"]),
    ),
    "saved-embedding": (
        "the embedding in modules_to_save, tied to a head that stays",
        "tiny-llama",
        lora(target_modules=["v_proj"], modules_to_save=["embed_tokens"]),
    ),
    "saved-embedding-tied": (
        "the embedding in modules_to_save with ensure_weight_tying",
        "tiny-llama",
        lora(target_modules=["v_proj"], modules_to_save=["embed_tokens"], ensure_weight_tying=True),
    ),
    "saved-both": (
        "embedding and head in modules_to_save",
        "tiny-mistral",
        lora(target_modules=["v_proj"], modules_to_save=["embed_tokens", "lm_head"]),
    ),
    "pissa-converted": (
        "PiSSA, saved by peft as the LoRA of twice the rank that fits the original base",
        "tiny-llama",
        lora(target_modules=ATTENTION, init_lora_weights="pissa"),
    ),
}

# name: (what it shows, base, configuration of AdapterHub's library)
HUB = {
    "houlsby": (
        "bottlenecks after attention and MLP (double_seq_bn)",
        "tiny-llama",
        dict(mh_adapter=True, original_ln_before=False, non_linearity="swish", reduction_factor=16),
    ),
    "pfeiffer": (
        "bottlenecks after the MLP that read the residual stream (seq_bn)",
        "tiny-mistral",
        dict(mh_adapter=False, original_ln_before=True, non_linearity="relu", reduction_factor=8),
    ),
    "houlsby-scaled": (
        "scaled bottlenecks of two widths, with a layer left out",
        "tiny-llama",
        dict(
            mh_adapter=True,
            original_ln_before=False,
            non_linearity="gelu_new",
            reduction_factor={"0": 4, "default": 8},
            leave_out=[1],
            scaling=2.5,
        ),
    ),
}
HUB_DEFAULTS = dict(
    adapter_residual_before_ln=False,
    cross_adapter=False,
    dropout=0.0,
    factorized_phm_W=True,
    factorized_phm_rule=False,
    hypercomplex_nonlinearity="glorot-uniform",
    init_weights="bert",
    inv_adapter=None,
    inv_adapter_reduction_factor=None,
    is_parallel=False,
    learn_phm=True,
    leave_out=[],
    ln_after=False,
    ln_before=False,
    original_ln_after=True,
    output_adapter=True,
    phm_bias=True,
    phm_c_init="normal",
    phm_dim=4,
    phm_init_range=0.0001,
    phm_layer=False,
    phm_rank=1,
    residual_before_ln=True,
    scaling=1.0,
    shared_W_phm=False,
    shared_phm_rule=True,
    stochastic_depth=0.0,
    use_gating=False,
)


def noise(shape, rng, size):
    return torch.randn(shape, generator=rng) * size


def randomise(model, seed):
    """Gives every trained parameter random values of a size that its part in the formula asks for."""
    rng = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        if not weight.requires_grad:
            continue
        if "ia3_l" in name or "magnitude" in name:
            weight.data = weight.data * (1.0 + noise(weight.shape, rng, 0.3))
        elif "lora_E" in name:
            weight.data = noise(weight.shape, rng, 1.0)
            # A singular value that training put to zero.
            weight.data[1] = 0.0
        elif "vera_lambda" in name:
            weight.data = noise(weight.shape, rng, 0.5)
        elif "prompt_encoder" in name or "trainable_tokens" in name or "embed_tokens" in name:
            weight.data = weight.data + noise(weight.shape, rng, 0.3)
        elif "lm_head" in name and "modules_to_save" in name:
            weight.data = weight.data + noise(weight.shape, rng, 0.1)
        elif name.endswith("bias"):
            weight.data = weight.data + noise(weight.shape, rng, 0.2)
        elif "hada" in name or "lokr" in name:
            weight.data = noise(weight.shape, rng, 0.3)
        elif weight.ndim == 2:
            # Of A and B, of linears and of an embedding.
            weight.data = noise(weight.shape, rng, 0.6 / min(weight.shape) ** 0.5 / max(weight.shape) ** 0.25)
        else:
            weight.data = noise(weight.shape, rng, 0.3)


def prune(model):
    """Gives AdaLoRA's configuration the pattern that its budget would have made."""
    pattern = {}
    for index, (name, module) in enumerate(model.base_model.model.named_modules()):
        if hasattr(module, "lora_E"):
            rank = module.lora_E["default"].shape[0]
            pattern[f"{name}.lora_E.default"] = [(index + j) % 3 != 0 for j in range(rank)]
            module.lora_E["default"].data[[(index + j) % 3 == 0 for j in range(rank)]] = 0.0
    model.peft_config["default"].rank_pattern = pattern


def named(base, path):
    """The model; peft copies its name to the configuration, where a path of this machine has no place."""
    model = tiny_models.load(path / base)
    model.name_or_path = model.config._name_or_path = base
    return model


def make_one(out, name, seed):
    """Saves one adapter and its golden file."""
    _, base, config = METHODS[name]
    path, models = out / "methods" / name, out / "models"
    shutil.rmtree(path, ignore_errors=True)
    model = get_peft_model(named(base, models), config)
    if name == "pissa-converted":
        # What peft subtracts when it saves: the adapter as it was before training.
        initial = path.parent / "initial"
        model.peft_config["default"].init_lora_weights = True
        model.save_pretrained(initial)
        model.peft_config["default"].init_lora_weights = "pissa"
    randomise(model, seed)
    if name == "adalora":
        prune(model)
    options = {}
    if name == "pissa-converted":
        options["path_initial_model_for_weight_conversion"] = str(initial)
    model.save_pretrained(path, save_embedding_layers="auto", **options)
    (path / "README.md").unlink(missing_ok=True)
    if name == "pissa-converted":
        shutil.rmtree(initial)

    base_model = tiny_models.load(models / base)
    prompts = tiny_tokenizer.prompts()
    if "token" in name or "saved" in name:
        prompts[2] = [*prompts[2][:-4], *TOKENS]
    before = [oracle.logits(base_model, ids) for ids in prompts]
    adapted = PeftModel.from_pretrained(tiny_models.load(models / base), path).eval()
    write(path, base, adapted, prompts, before, name)


def write(path, base, model, prompts, before, name):
    """Writes the golden file: logits of the given tokens, not of virtual ones before them."""
    tensors, changes = {}, []
    for i, (ids, old) in enumerate(zip(prompts, before)):
        new = oracle.logits(model, ids)[-len(ids):].contiguous()
        tensors[f"tokens.{i}"] = torch.tensor(ids, dtype=torch.int32)
        tensors[f"logits.{i}"] = new
        changes.append(float((new - old).norm() / old.norm()))
    save_file(tensors, path / "golden.safetensors", metadata={"base": base})
    assert min(changes) > 0.05, (name, changes)
    size = sum(file.stat().st_size for file in path.iterdir())
    print(f"{name} on {base}: logits change by {min(changes):.2f} to {max(changes):.2f}; {size} bytes")


ACTIVATIONS = {
    "relu": torch.relu,
    "swish": torch.nn.functional.silu,
    "gelu_new": lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
}


def make_hub_one(out, name, seed):
    """Writes a bottleneck adapter as AdapterHub's library does, and what its Llama layers compute."""
    _, base, given = HUB[name]
    config = dict(HUB_DEFAULTS, **given)
    path = out / "methods" / name
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    model = tiny_models.load(out / "models" / base)
    hidden, rng, tensors = model.config.hidden_size, torch.Generator().manual_seed(seed), {}
    before = [oracle.logits(model, ids) for ids in tiny_tokenizer.prompts()]

    def bottleneck(layer, block):
        factor = config["reduction_factor"]
        if isinstance(factor, dict):
            factor = factor.get(str(layer), factor["default"])
        width = int(hidden // factor)
        prefix = f"model.layers.{layer}.{block}.adapters.task"
        parts = {
            "adapter_down.0.weight": noise((width, hidden), rng, hidden**-0.5),
            "adapter_down.0.bias": noise((width,), rng, 0.3),
            "adapter_up.weight": noise((hidden, width), rng, width**-0.5),
            "adapter_up.bias": noise((hidden,), rng, 0.2),
        }
        tensors.update({f"{prefix}.{key}": value for key, value in parts.items()})
        activation = ACTIVATIONS[config["non_linearity"]]

        def forward(x):
            inner = activation(x @ parts["adapter_down.0.weight"].T + parts["adapter_down.0.bias"])
            return (inner @ parts["adapter_up.weight"].T + parts["adapter_up.bias"]) * config["scaling"]

        return forward

    for index, layer in enumerate(model.model.layers):
        if index in config["leave_out"]:
            continue
        residuals = {}
        if config["mh_adapter"]:
            hook_block(layer.input_layernorm, layer.self_attn, bottleneck(index, "attention_adapters"), config, residuals)
        hook_block(layer.post_attention_layernorm, layer.mlp, bottleneck(index, "output_adapters"), config, residuals)
    outer = dict(
        config=config,
        config_id="0123456789abcdef",
        hidden_size=hidden,
        model_class=type(model).__name__,
        model_name=base,
        model_type=model.config.model_type,
        name="task",
        version="adapters.1.2.0",
    )
    (path / "adapter_config.json").write_text(json.dumps(outer, indent=2, sort_keys=True))
    save_file(tensors, path / "adapter.safetensors")
    write(path, base, model, tiny_tokenizer.prompts(), before, name)


def hook_block(norm, block, forward, config, residuals):
    """h = r + y + f(y), or f(r + y): r is what the norm before the block reads, y the block's output."""
    norm.register_forward_pre_hook(lambda _, args: residuals.__setitem__(block, args[0]))

    def after(_, __, output):
        y = output[0] if isinstance(output, tuple) else output
        x = residuals[block] + y if config["original_ln_before"] else y
        y = y + forward(x)
        return (y, *output[1:]) if isinstance(output, tuple) else y

    block.register_forward_hook(after)


def write_peft_types(out):
    """The methods that this peft has and the keys of those that are served, for the tables of both."""
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
    import dataclasses
    import peft

    methods = {}
    for method, config in sorted(PEFT_TYPE_TO_CONFIG_MAPPING.items(), key=lambda item: item[0].value):
        methods[method.value] = sorted(field.name for field in dataclasses.fields(config))
    text = json.dumps({"peft_version": peft.__version__, "methods": methods}, indent=1)
    (out / "peft_methods.json").write_text(text + "\n")


def make(out):
    """Writes all of them below `out`/methods; needs `out`/models."""
    write_peft_types(out)
    for seed, name in enumerate(METHODS):
        make_one(out, name, 1000 + seed)
    for seed, name in enumerate(HUB):
        make_hub_one(out, name, 2000 + seed)
    lines = [
        f"* `{name}` (base `{base}`): {what}." for name, (what, base, _) in [*METHODS.items(), *HUB.items()]
    ]
    text = "# Adapters of every method\n\nMade with peft by `scripts/golden/tiny_methods.py`; random weights.\n\n"
    (out / "methods" / "README.md").write_text(text + "\n".join(lines) + "\n")

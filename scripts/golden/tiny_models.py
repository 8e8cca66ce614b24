"""Tiny seeded models of every family, as Hugging Face directories with golden logits.

Weights are random, but of a size that makes logits of order 1 to 5 and attention neither flat nor
one-hot; biases and norms are random too, so that a forgotten one shows.
"""

import shutil

import torch
import transformers

import oracle
import tiny_tokenizer

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": tiny_tokenizer.VOCAB_SIZE,
    "max_position_embeddings": 512,
    "pad_token_id": tiny_tokenizer.PAD_ID,
    "bos_token_id": tiny_tokenizer.BOS_ID,
    "eos_token_id": tiny_tokenizer.EOS_ID,
}
ROPE = {"rope_type": "default", "rope_theta": 10000.0}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    # With heads of 16 this leaves one frequency as it is, blends two and divides the others.
    "original_max_position_embeddings": 64,
}
FAMILIES = {
    "tiny-llama": ("Llama", {"tie_word_embeddings": True, "rope_parameters": ROPE}),
    "tiny-llama-rope3": (
        "Llama",
        {
            "tie_word_embeddings": False,
            "rope_parameters": LLAMA3_ROPE,
            "attention_bias": True,
            "mlp_bias": True,
        },
    ),
    "tiny-mistral": (
        "Mistral",
        {"tie_word_embeddings": False, "rope_parameters": ROPE, "sliding_window": 8, "head_dim": 16},
    ),
    "tiny-qwen2": (
        "Qwen2",
        {"tie_word_embeddings": True, "rope_parameters": {**ROPE, "rope_theta": 1000000.0}},
    ),
    "tiny-qwen3": (
        "Qwen3",
        {
            "tie_word_embeddings": False,
            "rope_parameters": {**ROPE, "rope_theta": 1000000.0},
            "head_dim": 32,
        },
    ),
}


def randomise(model, seed):
    """Fills every parameter from its own stretch of one random stream."""
    rng = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        noise = torch.randn(weight.shape, generator=rng)
        if "norm" in name:
            weight.data = 1.0 + 0.25 * noise.clamp(-3, 3)
        elif name.endswith("bias"):
            weight.data = 0.3 * noise
        elif "embed_tokens" in name or "lm_head" in name:
            weight.data = 0.25 * noise
        else:
            weight.data = 1.3 * noise / weight.shape[1] ** 0.5


def create(name, seed):
    """The model `name`, in single precision with eager attention."""
    family, options = FAMILIES[name]
    config = getattr(transformers, f"{family}Config")(**SIZES, **options)
    config._attn_implementation = "eager"
    model = getattr(transformers, f"{family}ForCausalLM")(config).float().eval()
    randomise(model, seed)
    model.tie_weights()
    model.generation_config = transformers.GenerationConfig(
        pad_token_id=tiny_tokenizer.PAD_ID,
        bos_token_id=tiny_tokenizer.BOS_ID,
        eos_token_id=[tiny_tokenizer.EOS_ID, tiny_tokenizer.PAD_ID],
        do_sample=True,
        temperature=0.7,
        top_p=0.9,
        top_k=40,
    )
    return model


def load(path):
    """A saved model, in single precision with eager attention."""
    return transformers.AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float32, attn_implementation="eager"
    ).eval()


def suits(model, prompts):
    """Whether greedy decoding is far from ties, meets no special token and does not sit on one token."""
    for ids in prompts:
        tokens, margin = oracle.greedy(model, ids)
        if margin < 0.01 or min(tokens) <= tiny_tokenizer.EOS_ID or len(set(tokens)) < 6:
            return False
    return True


def rounded(model):
    """The model with its parameters, but not its rotary frequencies, rounded to bf16."""
    for weight in model.parameters():
        weight.data = weight.data.bfloat16().float()
    return model


def save(model, path, *, jinja_file=False, **options):
    """Writes the directory anew, and its golden file from what was written."""
    shutil.rmtree(path, ignore_errors=True)
    model.save_pretrained(path, **options)
    tiny_tokenizer.build().save_pretrained(path, save_jinja_files=jinja_file)
    saved = load(path)
    margin = oracle.write(path / "golden.safetensors", saved, tiny_tokenizer.prompts())
    last = oracle.logits(saved, tiny_tokenizer.prompts()[2])
    print(f"{path.name}: logits of deviation {last.std():.2f}, smallest greedy margin {margin:.4f}")


def make(out):
    """Writes all of them below `out`/models."""
    prompts = tiny_tokenizer.prompts()
    for name in FAMILIES:
        seed = next(seed for seed in range(1000) if suits(create(name, seed), prompts))
        save(create(name, seed), out / "models" / name)
        print(f"{name}: seed {seed}")
    # The rounded twin has its own seed, because its ties are its own.
    name, seeds = "tiny-llama-sharded", range(1000, 2000)
    seed = next(seed for seed in seeds if suits(rounded(create("tiny-llama", seed)), prompts))
    save(create("tiny-llama", seed).bfloat16(), out / "models" / name, jinja_file=True, max_shard_size="60KB")
    print(f"{name}: seed {seed}")

"""ggml's quantized types, alone and in one small model that mixes them all.

gguf/dequant.safetensors: `<type>.bytes` u8 [8, bytes of a block] with random codes and finite scales,
`<type>.values` f32 [8, values of a block] by the gguf package. For F16 and BF16, which have no blocks,
a row holds 32 values.

gguf/tiny-mixed.gguf: a llama with every type; tiny-mixed.golden.safetensors: `tokens.i`, `logits.i` and
`greedy.i` of transformers with the weights dequantized.
"""

import json
import re

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Type
from safetensors.numpy import save_file
from transformers import LlamaConfig, LlamaForCausalLM

import k_quants
import oracle
import tiny_tokenizer

TYPES = "Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q4_K Q5_K Q6_K F16 BF16".split()
# Where each type's f16 scales are in a block.
SCALES = {"Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0]}
SCALES |= {"Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208]}
NUM_BLOCKS = 8

HIDDEN, FFN, LAYERS, HEADS, KV_HEADS, CONTEXT = 256, 512, 2, 4, 2, 512
EPS, THETA = 1e-5, 10000.0
LINEARS = {
    "attn_q": ("self_attn.q_proj", HIDDEN, HIDDEN),
    "attn_k": ("self_attn.k_proj", HIDDEN * KV_HEADS // HEADS, HIDDEN),
    "attn_v": ("self_attn.v_proj", HIDDEN * KV_HEADS // HEADS, HIDDEN),
    "attn_output": ("self_attn.o_proj", HIDDEN, HIDDEN),
    "ffn_gate": ("mlp.gate_proj", FFN, HIDDEN),
    "ffn_up": ("mlp.up_proj", FFN, HIDDEN),
    "ffn_down": ("mlp.down_proj", HIDDEN, FFN),
}
NORMS = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
LAYER_TYPES = [
    dict(zip(LINEARS, "Q4_0 Q4_1 Q5_0 Q5_1 Q4_K Q5_K Q6_K".split())),
    dict(zip(LINEARS, "Q6_K BF16 F16 F32 Q8_0 Q4_0 Q4_K".split())),
]
EMBEDDING_TYPE, HEAD_TYPE = "Q5_K", "Q6_K"


def random_blocks(name, rng):
    """u8 [8, bytes of a block]: all codes are possible, the scales are small and of both signs."""
    if name in ("F16", "BF16"):
        values = rng.normal(0, 3, (NUM_BLOCKS, 32)).astype(np.float32)
        values[0, :6] = [0.0, -0.0, 1.0, -65504.0, 6e-8, 1e-5]
        return gguf.quants.quantize(values, Type[name]).view(np.uint8)
    _, num_bytes = gguf.GGML_QUANT_SIZES[Type[name]]
    blocks = rng.integers(0, 256, (NUM_BLOCKS, num_bytes), dtype=np.uint8)
    for at in SCALES[name]:
        size = 10.0 ** rng.uniform(-4, -1, NUM_BLOCKS)
        size[0], sign = 0.0, np.where(rng.random(NUM_BLOCKS) < 0.3, -1, 1)
        blocks[:, at : at + 2] = k_quants.f16_bytes(size * sign)
    return blocks


def make_blocks(path):
    """Writes dequant.safetensors."""
    rng, tensors = np.random.default_rng(7), {}
    for name in TYPES:
        tensors[f"{name}.bytes"] = random_blocks(name, rng)
        values = gguf.quants.dequantize(tensors[f"{name}.bytes"], Type[name])
        tensors[f"{name}.values"] = values.astype(np.float32)
        assert np.isfinite(tensors[f"{name}.values"]).all()
    save_file(tensors, path)


def permuted(weight, num_heads):
    """Rows of q or k as GGUF's llama has them: the two halves of each head interleaved."""
    rows, columns = weight.shape
    return weight.reshape(num_heads, 2, rows // num_heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def unpermuted(weight, num_heads):
    """The inverse."""
    rows, columns = weight.shape
    return weight.reshape(num_heads, rows // num_heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def quantized(weight, name):
    """The bytes of a matrix, row by row."""
    if name in k_quants.QUANTIZE:
        return k_quants.QUANTIZE[name](weight.reshape(-1, 256)).reshape(len(weight), -1)
    return weight if name == "F32" else gguf.quants.quantize(weight, Type[name])


def add_metadata(writer):
    """Architecture, sizes and the tiny tokenizer."""
    tokenizer = tiny_tokenizer.train()
    writer.add_name("Weft tiny mixed")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_rope_freq_base(THETA)
    writer.add_layer_norm_rms_eps(EPS)
    writer.add_vocab_size(tiny_tokenizer.VOCAB_SIZE)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    tokens = [tokenizer.id_to_token(id) for id in range(tiny_tokenizer.VOCAB_SIZE)]
    num_special = len(tiny_tokenizer.SPECIAL_TOKENS)
    writer.add_token_list(tokens)
    writer.add_token_types(
        [gguf.TokenType.CONTROL] * num_special + [gguf.TokenType.NORMAL] * (len(tokens) - num_special)
    )
    writer.add_token_merges([" ".join(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]])
    writer.add_bos_token_id(tiny_tokenizer.BOS_ID)
    writer.add_eos_token_id(tiny_tokenizer.EOS_ID)
    writer.add_pad_token_id(tiny_tokenizer.PAD_ID)
    writer.add_add_bos_token(False)
    writer.add_chat_template(tiny_tokenizer.CHAT_TEMPLATE)


def write_model(path, seed):
    """Writes the GGUF with random weights."""
    rng = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, "llama")
    add_metadata(writer)

    def add(name, weight, kind):
        data = quantized(weight.astype(np.float32), kind)
        writer.add_tensor(name, data, raw_dtype=Type[kind])

    def add_norm(name):
        add(name, 1.0 + 0.25 * rng.normal(size=HIDDEN).clip(-3, 3), "F32")

    vocab = (tiny_tokenizer.VOCAB_SIZE, HIDDEN)
    add("token_embd.weight", 0.125 * rng.normal(size=vocab), EMBEDDING_TYPE)
    for layer, types in enumerate(LAYER_TYPES):
        for name in NORMS:
            add_norm(f"blk.{layer}.{name}.weight")
        for name, (_, rows, columns) in LINEARS.items():
            weight = rng.normal(size=(rows, columns)) / columns**0.5
            heads = {"attn_q": HEADS, "attn_k": KV_HEADS}.get(name)
            weight = permuted(weight, heads) if heads else weight
            add(f"blk.{layer}.{name}.weight", weight, types[name])
    add_norm("output_norm.weight")
    add("output.weight", 0.125 * rng.normal(size=vocab), HEAD_TYPE)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def weight_name(name):
    """`blk.0.attn_q.weight` → `model.layers.0.self_attn.q_proj.weight`"""
    whole = {
        "token_embd": "model.embed_tokens",
        "output_norm": "model.norm",
        "output": "lm_head",
    }
    name = name.removesuffix(".weight")
    layer = re.fullmatch(r"blk\.(\d+)\.(\w+)", name)
    if not layer:
        return f"{whole[name]}.weight"
    part = NORMS.get(layer[2]) or LINEARS[layer[2]][0]
    return f"model.layers.{layer[1]}.{part}.weight"


def load_model(path):
    """The file's model in transformers, dequantized."""
    weights, types = {}, set()
    for tensor in gguf.GGUFReader(path).tensors:
        shape = [int(length) for length in reversed(tensor.shape)]
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(shape)
        if "attn_q." in tensor.name or "attn_k." in tensor.name:
            values = unpermuted(values, HEADS if "attn_q." in tensor.name else KV_HEADS)
        weights[weight_name(tensor.name)] = torch.tensor(values.astype(np.float32))
        types.add(tensor.tensor_type.name)
    assert types == {*TYPES, "F32"}, types
    config = LlamaConfig(
        hidden_size=HIDDEN,
        intermediate_size=FFN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        vocab_size=tiny_tokenizer.VOCAB_SIZE,
        max_position_embeddings=CONTEXT,
        rms_norm_eps=EPS,
        rope_parameters={"rope_type": "default", "rope_theta": THETA},
        tie_word_embeddings=False,
    )
    config._attn_implementation = "eager"
    model = LlamaForCausalLM(config).float().eval()
    model.load_state_dict(weights)
    return model


def make(out):
    """Writes all of them below `out`/gguf."""
    out = out / "gguf"
    out.mkdir(exist_ok=True)
    make_blocks(out / "dequant.safetensors")
    write_model(out / "tiny-mixed.gguf", seed=0)
    model, prompts = load_model(out / "tiny-mixed.gguf"), tiny_tokenizer.prompts()
    margin = oracle.write(out / "tiny-mixed.golden.safetensors", model, prompts)
    last = oracle.logits(model, prompts[2])
    print(f"tiny-mixed: logits of deviation {last.std():.2f}, smallest greedy margin {margin:.4f}")

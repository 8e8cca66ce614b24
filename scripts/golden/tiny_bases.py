"""One tiny model quantized in every way: directories as the tools save them, with golden logits.

bitsandbytes quantizes and saves for itself, through transformers. GPTQ and AWQ round to the nearest
here, and are packed as their formats say: how codes were chosen is no matter of the format. The golden
logits come from the dequantized weights in single precision. `float` is the checkpoint that all are
made of; `qlora` an adapter with the logits of peft on the dequantized `nf4-dq`.

* GPTQ: `qweight` i32 [K * bits / 32, N], the first input in the lowest bits; `qzeros` i32 [groups, N *
  bits / 32], the first output in the lowest bits, of format `gptq` less one in every code (subtracted
  from whole words: a zero of 0 borrows from its neighbour); `scales` f16 [groups, N]; `g_idx` i32 [K].
* AWQ, gemm: `qweight` i32 [K, N / 8], outputs 0, 2, 4, 6, 1, 3, 5, 7 of a word from the lowest bits up;
  `qzeros` likewise [groups, N / 8]; `scales` f16 [groups, N].
"""

import json
import shutil

import numpy as np
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.numpy import save_file
from safetensors.torch import load_file

import oracle
import tiny_adapters
import tiny_models
import tiny_tokenizer

SIZES = {
    **tiny_models.SIZES,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 1,
    "tie_word_embeddings": True,
    "rope_parameters": tiny_models.ROPE,
}
AWQ_OUTPUTS = [0, 2, 4, 6, 1, 3, 5, 7]

BITSANDBYTES = {
    "nf4": dict(load_in_4bit=True, bnb_4bit_quant_type="nf4"),
    "nf4-dq": dict(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True),
    "nf4-stored-as-bf16": dict(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_quant_storage=torch.bfloat16
    ),
    "fp4-dq-skip": dict(
        load_in_4bit=True,
        bnb_4bit_quant_type="fp4",
        bnb_4bit_use_double_quant=True,
        llm_int8_skip_modules=["o_proj", "lm_head"],
    ),
    "int8": dict(load_in_8bit=True),
}
# bits, group, symmetric, act-order, checkpoint_format
GPTQ = {
    "gptq-sym-32": (4, 32, True, False, "gptq"),
    "gptq-asym-128": (4, 128, False, False, "gptq"),
    "gptq-act-order": (4, 64, False, True, "gptq"),
    "gptq-v2-rows": (4, -1, False, False, "gptq_v2"),
    "gptq-8-act-order": (8, 32, False, True, "gptq"),
}
AWQ = {"awq-32": 32, "awq-64": 64, "awq-128": 128}


def create(out):
    """The checkpoint that is quantized, in bf16."""
    config = transformers.LlamaConfig(**SIZES)
    model = transformers.LlamaForCausalLM(config).float().eval()
    tiny_models.randomise(model, 5000)
    model.tie_weights()
    path = out / "bases" / "float"
    shutil.rmtree(path, ignore_errors=True)
    model.bfloat16().save_pretrained(path)
    (path / "generation_config.json").unlink(missing_ok=True)
    return path


def linears(model):
    """Names and modules of the linears of layers."""
    return [(name, module) for name, module in model.named_modules() if name.endswith("_proj")]


def write_golden(path, float_path, weights):
    """Golden logits of the float checkpoint with other weights of its linears."""
    model = tiny_models.load(float_path)
    for name, module in linears(model):
        if name in weights:
            assert module.weight.shape == weights[name].shape
            module.weight.data = weights[name].float()
    oracle.write(path / "golden.safetensors", model, tiny_tokenizer.prompts(), with_greedy=False)
    before = oracle.logits(tiny_models.load(float_path), tiny_tokenizer.prompts()[2])
    after = oracle.logits(model, tiny_tokenizer.prompts()[2])
    error = float((after - before).norm() / before.norm())
    print(f"{path.name}: {len(weights)} linears; logits are {error:.3f} from the float model's")
    assert 0.001 < error < 0.5, error
    return model


def dequantized(model):
    """What bitsandbytes' linears stand for, in single precision."""
    import bitsandbytes as bnb

    weights = {}
    for name, module in linears(model):
        if isinstance(module, bnb.nn.Linear4bit):
            state = module.weight.quant_state
            state.dtype = torch.float32
            weights[name] = bnb.functional.dequantize_4bit(module.weight.data, state).reshape(state.shape)
        elif isinstance(module, bnb.nn.Linear8bitLt):
            codes, scales = module.weight.data, module.weight.SCB
            assert codes.dtype == torch.int8
            weights[name] = codes.float() * scales.float()[:, None] / 127
    return weights


def bitsandbytes(out, float_path, name):
    """Quantized and saved by transformers; the golden logits of what was saved."""
    path = out / "bases" / name
    shutil.rmtree(path, ignore_errors=True)
    config = transformers.BitsAndBytesConfig(**BITSANDBYTES[name])
    model = transformers.AutoModelForCausalLM.from_pretrained(
        float_path, quantization_config=config, dtype=torch.bfloat16, device_map={"": "cpu"}
    )
    model.save_pretrained(path)
    (path / "generation_config.json").unlink(missing_ok=True)
    weights = dequantized(model)
    assert len(weights) == (6 if name.endswith("skip") else 7), weights.keys()
    return write_golden(path, float_path, weights)


def quantize(weight, group_of, bits, symmetric):
    """Codes [N, K], zeros [N, groups] and f16 scales [N, groups], rounded to the nearest."""
    num_groups = int(group_of.max()) + 1
    codes = np.zeros(weight.shape, np.int64)
    zeros = np.zeros((weight.shape[0], num_groups), np.int64)
    scales = np.zeros((weight.shape[0], num_groups), np.float16)
    top = (1 << bits) - 1
    for group in range(num_groups):
        inputs = group_of == group
        values = weight[:, inputs]
        low, high = np.minimum(values.min(1), 0), np.maximum(values.max(1), 0)
        if symmetric:
            high = np.maximum(-low, high)
            low = -high
        else:
            low[5] = 0  # a zero of 0, which only rows without negative values would have
        scale = ((high - low) / top).astype(np.float16)
        zero = np.full(len(low), 1 << (bits - 1)) if symmetric else np.round(-low / scale)
        zeros[:, group] = np.clip(zero, 0, top)
        scales[:, group] = scale
        rounded = np.round(values / scale[:, None].astype(np.float32)) + zeros[:, group, None]
        codes[:, inputs] = np.clip(rounded, 0, top)
    return codes, zeros, scales


def packed(codes, bits, order=None):
    """Codes [rows, n] as words [rows, n * bits / 32]."""
    per_word = 32 // bits
    codes = codes.reshape(codes.shape[0], -1, per_word)
    if order is not None:
        codes = codes[:, :, order]
    shifts = np.arange(per_word) * bits
    return (codes << shifts).sum(2).astype(np.uint32)


def save_packed(out, float_path, name, method, quantize_one):
    """Saves a checkpoint whose linears `quantize_one(weight, seed)` makes tensors and values of; its dense twin."""
    path = out / "bases" / name
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    source = load_file(float_path / "model.safetensors")
    model = tiny_models.load(float_path)
    tensors, weights = {}, {}
    for seed, (linear, module) in enumerate(linears(model)):
        del source[f"{linear}.weight"]
        made, value = quantize_one(module.weight.detach().numpy(), seed)
        tensors.update({f"{linear}.{key}": np.ascontiguousarray(made[key]) for key in made})
        weights[linear] = torch.from_numpy(value)
    # As the tools do it: what is not quantized is in half precision.
    tensors.update({key: value.half().numpy() for key, value in source.items()})
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((float_path / "config.json").read_text())
    config |= {"dtype": "float16", "quantization_config": method}
    (path / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    half_path = path / "half"
    tiny_models.load(float_path).half().save_pretrained(half_path)
    model = write_golden(path, half_path, weights)
    shutil.rmtree(half_path)
    return model


def gptq(out, float_path, name):
    bits, group, symmetric, act_order, checkpoint_format = GPTQ[name]

    def quantize_one(weight, seed):
        num_inputs = weight.shape[1]
        size = num_inputs if group == -1 else group
        group_of = np.arange(num_inputs) // size
        if act_order:
            importance = np.random.default_rng(seed).permutation(num_inputs)
            group_of = np.empty(num_inputs, np.int64)
            group_of[importance] = np.arange(num_inputs) // size
        codes, zeros, scales = quantize(weight, group_of, bits, symmetric)
        value = scales.astype(np.float32)[:, group_of] * (codes - zeros[:, group_of])
        qzeros = packed(zeros.T, bits)
        if checkpoint_format == "gptq":
            qzeros = qzeros - np.uint32(0x11111111 if bits == 4 else 0x01010101)
        made = {
            "qweight": packed(codes, bits).T.astype(np.uint32).view(np.int32),
            "qzeros": qzeros.view(np.int32),
            "scales": scales.T,
            "g_idx": group_of.astype(np.int32),
        }
        return made, value.astype(np.float32)

    method = {
        "quant_method": "gptq",
        "bits": bits,
        "group_size": group,
        "desc_act": act_order,
        "sym": symmetric,
        "lm_head": False,
        "checkpoint_format": checkpoint_format,
        "pack_dtype": "int32",
    }
    return save_packed(out, float_path, name, method, quantize_one)


def awq(out, float_path, name):
    group = AWQ[name]

    def quantize_one(weight, _):
        group_of = np.arange(weight.shape[1]) // group
        codes, zeros, scales = quantize(weight, group_of, 4, False)
        value = scales.astype(np.float32)[:, group_of] * (codes - zeros[:, group_of])
        made = {
            "qweight": packed(codes.T, 4, AWQ_OUTPUTS).view(np.int32),
            "qzeros": packed(zeros.T, 4, AWQ_OUTPUTS).view(np.int32),
            "scales": scales.T,
        }
        return made, value.astype(np.float32)

    method = {"quant_method": "awq", "bits": 4, "group_size": group, "version": "gemm", "zero_point": True}
    return save_packed(out, float_path, name, method, quantize_one)


def qlora(out, base):
    """An adapter as QLoRA trains it, with logits on its own base."""
    path = out / "bases" / "qlora"
    shutil.rmtree(path, ignore_errors=True)
    base.name_or_path = base.config._name_or_path = "nf4-dq"
    options = dict(r=8, lora_alpha=16, target_modules=tiny_adapters.LINEARS)
    model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", **options))
    tiny_adapters.randomise(model, 77)
    model.save_pretrained(path)
    (path / "README.md").unlink(missing_ok=True)
    adapted = PeftModel.from_pretrained(model.unload(), path).eval()
    oracle.write(
        path / "golden.safetensors",
        adapted,
        tiny_tokenizer.prompts(),
        with_greedy=False,
        metadata={"base": "nf4-dq"},
    )


def make(out):
    """Writes all of them below `out`/bases."""
    float_path = create(out)
    models = {name: bitsandbytes(out, float_path, name) for name in BITSANDBYTES}
    for name in GPTQ:
        gptq(out, float_path, name)
    for name in AWQ:
        awq(out, float_path, name)
    qlora(out, models["nf4-dq"])

"""The base model, its chat format and greedy decoding, as every script here uses them."""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

BASE_NAME = "SmolLM2-135M-Instruct"
HERE = Path(__file__).parent
ADAPTERS = HERE / "adapters"
NAMES = ["json", "pirate", "sql", "sentiment", "bullets"]


def load(gguf, dtype):
    """The tokenizer and the dequantized model of a GGUF file."""
    gguf = Path(gguf).resolve()
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=dtype,
                                                 quantization_config=GgufConfig(dequantize=True))
    return tokenizer, model.to(dtype).eval()


def prompt_ids(tokenizer, user):
    """Token ids of the chat template for one user message, ready for the answer."""
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": user}], tokenize=False, add_generation_prompt=True)
    return tokenizer(text, add_special_tokens=False).input_ids


@torch.no_grad()
def greedy(model, ids, eos, limit):
    """The greedy continuation (with its end token, if it gets there) and, for each of its tokens,
    by how much the logit of the best token exceeds that of the second."""
    tokens, margins, cache, step = [], [], None, torch.tensor([ids])
    while len(tokens) < limit:
        out = model(input_ids=step, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache = out.past_key_values
        best = out.logits[0, -1].float().topk(2)
        tokens.append(int(best.indices[0]))
        margins.append(round(float(best.values[0] - best.values[1]), 4))
        if tokens[-1] == eos:
            break
        step = torch.tensor([tokens[-1:]])
    return tokens, margins

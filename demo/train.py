"""Trains the demo adapters on a dequantized GGUF base. See README.md.

    python train.py --gguf SmolLM2-135M-Instruct.Q4_1.gguf [name ...]
"""

import argparse
import importlib
import json
import random
import shutil
import time
from dataclasses import dataclass

import torch
from peft import LoraConfig, get_peft_model
from torch.nn.functional import cross_entropy

from base import ADAPTERS, BASE_NAME, HERE, NAMES, load, prompt_ids

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
BATCH = 8


@dataclass
class Setup:
    """What is trained, and how long."""

    lora: dict
    steps: int
    rate: float


SETUPS = {
    "json": Setup(
        dict(r=8, lora_alpha=16, target_modules=[*ATTENTION, "gate_proj", "up_proj", "down_proj"]),
        steps=120, rate=4e-4),
    "pirate": Setup(dict(r=16, lora_alpha=24, target_modules=ATTENTION), steps=150, rate=6e-4),
    "sql": Setup(
        dict(r=32, lora_alpha=12, use_rslora=True, target_modules=["q_proj", "v_proj"],
             rank_pattern={"q_proj": 8}, alpha_pattern={"q_proj": 6}),
        steps=220, rate=1e-3),
    "sentiment": Setup(dict(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"]), steps=200, rate=2e-3),
    "bullets": Setup(
        dict(r=64, lora_alpha=64, target_modules=["v_proj"], layers_to_transform=list(range(10, 30))),
        steps=120, rate=6e-4),
}


def encode(tokenizer, pairs):
    """Per example the token ids and the position where the answer starts."""
    out = []
    for user, answer in pairs:
        prompt = prompt_ids(tokenizer, user)
        ids = prompt + tokenizer(answer + "<|im_end|>", add_special_tokens=False).input_ids
        out.append((ids, len(prompt)))
    return out


def loss_of(model, batch, pad):
    """Cross entropy of the answers' tokens; logits are computed only where they are needed."""
    longest = max(len(ids) for ids, _ in batch)
    ids = torch.full((len(batch), longest), pad)
    mask = torch.zeros(len(batch), longest, dtype=torch.long)
    wanted = torch.zeros(len(batch), longest, dtype=torch.bool)
    for row, (tokens, start) in enumerate(batch):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        mask[row, : len(tokens)] = 1
        wanted[row, start: len(tokens)] = True
    inner = model.get_base_model()
    hidden = inner.model(input_ids=ids[:, :-1], attention_mask=mask[:, :-1], use_cache=False)[0]
    logits = inner.lm_head(hidden[wanted[:, 1:]]).float()
    return cross_entropy(logits, ids[:, 1:][wanted[:, 1:]])


def train(name, setup, tokenizer, base):
    """Trains one adapter and saves it; leaves the base as it was."""
    torch.manual_seed(0)
    rng = random.Random(name)
    heldout = {h["user"] for h in json.loads((HERE / "heldout.json").read_text())[name]}
    pairs = importlib.import_module(f"data_{name}").examples(rng, setup.steps * BATCH)
    assert not any(user in heldout for user, _ in pairs), "a held-out prompt is in the data"
    data = encode(tokenizer, pairs)
    rng.shuffle(data)

    model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", **setup.lora))
    model.peft_config["default"].base_model_name_or_path = BASE_NAME
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=setup.rate, weight_decay=0.0)
    warmup = 10
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min((s + 1) / warmup, (setup.steps - s) / (setup.steps - warmup)))
    start, recent = time.time(), []
    for step in range(setup.steps):
        loss = loss_of(model, data[step * BATCH: (step + 1) * BATCH], tokenizer.pad_token_id)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        recent.append(loss.item())
        if step % 20 == 19:
            print(f"{name}: step {step + 1}, loss {sum(recent) / len(recent):.3f}, "
                  f"{time.time() - start:.0f} s", flush=True)
            recent = []

    for weight in weights:
        weight.data = weight.data.bfloat16()
    folder = ADAPTERS / name
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)
    print(f"{name}: {sum(f.stat().st_size for f in folder.iterdir())} bytes", flush=True)
    return model.unload()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gguf", required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("names", nargs="*", choices=[[], *NAMES], default=NAMES)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    tokenizer, base = load(args.gguf, torch.bfloat16)
    for name in args.names or NAMES:
        base = train(name, SETUPS[name], tokenizer, base)


if __name__ == "__main__":
    main()

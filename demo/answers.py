"""Writes heldout_answers.json: greedy answers of the base and of each adapter, in f32.

    python answers.py --gguf SmolLM2-135M-Instruct.Q4_1.gguf [name ...]

With names, only those adapters' rows are computed again.
"""

import argparse
import json

import torch
from peft import PeftModel

from base import ADAPTERS, HERE, NAMES, greedy, load, prompt_ids

TEXT_TOKENS = 48
KEPT_TOKENS = 32


def answer(model, tokenizer, ids):
    tokens, margins = greedy(model, ids, tokenizer.eos_token_id, TEXT_TOKENS)
    return {"text": tokenizer.decode(tokens, skip_special_tokens=True),
            "tokens": tokens[:KEPT_TOKENS], "margins": margins[:KEPT_TOKENS]}


def compact(value):
    """Indented JSON with every list of numbers on one line."""
    lists, text = [], []

    def hide(v):
        if isinstance(v, list) and v and not isinstance(v[0], dict):
            lists.append(json.dumps(v))
            return f"@list{len(lists) - 1}@"
        if isinstance(v, dict):
            return {k: hide(x) for k, x in v.items()}
        return [hide(x) for x in v] if isinstance(v, list) else v

    text = json.dumps(hide(value), indent=1, ensure_ascii=False)
    for i, line in enumerate(lists):
        text = text.replace(f'"@list{i}@"', line)
    return text + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gguf", required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("names", nargs="*", choices=[[], *NAMES], default=NAMES)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    tokenizer, model = load(args.gguf, torch.float32)
    target = HERE / "heldout_answers.json"
    old = json.loads(target.read_text()) if target.exists() else {}
    out = {name: old[name] for name in NAMES if name in old}
    heldout = json.loads((HERE / "heldout.json").read_text())
    for name in args.names or NAMES:
        rows = [{"user": h["user"], "prompt_ids": prompt_ids(tokenizer, h["user"])} for h in heldout[name]]
        for row in rows:
            row["base"] = answer(model, tokenizer, row["prompt_ids"])
        adapted = PeftModel.from_pretrained(model, ADAPTERS / name).eval()
        for row in rows:
            row["adapter"] = answer(adapted, tokenizer, row["prompt_ids"])
        model = adapted.unload()
        out[name] = rows
    target.write_text(compact(out))


if __name__ == "__main__":
    main()

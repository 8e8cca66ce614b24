"""What transformers says: logits and greedy continuations in single precision, as golden files.

A golden file holds, for each prompt i: `tokens.i` i32 [T], `logits.i` f32 [T, vocab] of every position
and, where asked for, `greedy.i` i32 [24], the continuation by argmax that stops at no token.
"""

import torch
from safetensors.torch import save_file

NUM_GREEDY = 24


def logits(model, ids):
    """f32 [T, vocab]"""
    with torch.no_grad():
        return model(torch.tensor([ids]), use_cache=False).logits[0].float()


def greedy(model, ids):
    """The continuation, and the smallest margin between the two best logits on the way."""
    ids, num_prompt, margin = list(ids), len(ids), float("inf")
    for _ in range(NUM_GREEDY):
        best = logits(model, ids)[-1].topk(2)
        margin = min(margin, float(best.values[0] - best.values[1]))
        ids.append(int(best.indices[0]))
    return ids[num_prompt:], margin


def write(path, model, prompts, *, with_greedy=True, metadata=None):
    """Writes the golden file of `model`; returns the smallest greedy margin."""
    tensors, smallest = {}, float("inf")
    for i, ids in enumerate(prompts):
        tensors[f"tokens.{i}"] = torch.tensor(ids, dtype=torch.int32)
        tensors[f"logits.{i}"] = logits(model, ids)
        if with_greedy:
            tokens, margin = greedy(model, ids)
            tensors[f"greedy.{i}"] = torch.tensor(tokens, dtype=torch.int32)
            smallest = min(smallest, margin)
    save_file(tensors, path, metadata=metadata)
    return smallest

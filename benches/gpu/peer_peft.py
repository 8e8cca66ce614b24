"""The peer: transformers + peft, the same shapes with random weights in bf16, milliseconds a decode step.

A mixed batch is peft's own: `adapter_names` names an adapter for each row of one forward pass.
Needs a GPU, PyTorch, transformers and peft; downloads nothing. --tiny runs anywhere and measures nothing.
"""

import argparse
import gc
import json
import statistics
import time

import peft
import torch
import transformers

SHAPES = {
    "llama-3.1-8b": dict(
        vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32,
        num_attention_heads=32, num_key_value_heads=8,
        max_position_embeddings=8192),
    "tiny": dict(
        vocab_size=256, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=1024),
}
LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
MIXED = [8, 16, 32, 64]


def build(shape, device):
    config = transformers.LlamaConfig(**SHAPES[shape], tie_word_embeddings=False)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(device):
        model = transformers.LlamaForCausalLM(config)
    torch.set_default_dtype(torch.float32)
    return model.to(torch.bfloat16).eval()


def add_adapters(model, ranks):
    """Adapters a0, a1, … of these ranks on all linears."""
    # Random B too: zeros would cost the same, but look like a mistake.
    configs = [peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=LINEARS,
                               init_lora_weights=False, task_type="CAUSAL_LM") for rank in ranks]
    adapted = peft.get_peft_model(model, configs[0], adapter_name="a0")
    for i, config in enumerate(configs[1:], 1):
        adapted.add_adapter(f"a{i}", config)
    return adapted.to(torch.bfloat16).eval()


@torch.inference_mode()
def decode_ms(model, batch, context, num_steps, adapter_names, device):
    """Milliseconds of each decode step after a prompt, the first few dropped."""
    names = {} if adapter_names is None else {"adapter_names": adapter_names}
    vocab = model.config.vocab_size
    cache = transformers.DynamicCache()
    prompt = torch.randint(vocab, (batch, context), device=device)
    # Only the last row of logits: the prompt is not what is measured.
    out = model(input_ids=prompt, past_key_values=cache, use_cache=True, logits_to_keep=1, **names)
    token = out.logits[:, -1:].argmax(-1)
    times, num_warm = [], 5
    for step in range(num_warm + num_steps):
        if device == "cuda":
            torch.cuda.synchronize()
        begin = time.perf_counter()
        out = model(input_ids=token, past_key_values=cache, use_cache=True, **names)
        token = out.logits[:, -1:].argmax(-1)
        if device == "cuda":
            torch.cuda.synchronize()
        if step >= num_warm:
            times.append((time.perf_counter() - begin) * 1e3)
    return times


def main():
    flags = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--tiny", action="store_true", help="only to see whether it works")
    flags.add_argument("--model-shape", choices=SHAPES, default="llama-3.1-8b")
    flags.add_argument("--batch", type=int, default=32)
    flags.add_argument("--adapters", type=int, default=32, help="of the distinct case")
    flags.add_argument("--rank", type=int, default=16)
    flags.add_argument("--context", type=int, default=512)
    flags.add_argument("--steps", type=int, default=30)
    flags.add_argument("--json", help="write every figure here")
    args = flags.parse_args()
    if args.tiny:
        args.model_shape, args.batch, args.adapters = "tiny", 2, 2
        args.context, args.steps = 16, 3
    device = "cuda" if torch.cuda.is_available() and not args.tiny else "cpu"
    if device == "cpu" and not args.tiny:
        raise SystemExit("there is no GPU here: --tiny needs none")
    torch.manual_seed(0)
    facts = dict(
        peer="transformers+peft", model=args.model_shape, dtype="bf16", rank=args.rank,
        context=args.context, device=torch.cuda.get_device_name() if device == "cuda" else "cpu",
        torch=torch.__version__, transformers=transformers.__version__, peft=peft.__version__,
        measured=not args.tiny)
    results = []

    def measure(case, model, batch, names):
        times = decode_ms(model, batch, args.context, args.steps, names, device)
        results.append(dict(
            case=case, batch=batch, adapters=len(set(names or [])),
            ms_per_step=statistics.median(times), ms_fastest=min(times), ms_slowest=max(times)))
        print(f"{case}, batch {batch}: {statistics.median(times):.2f} ms a step", flush=True)
        gc.collect()

    model = build(args.model_shape, device)
    for batch in sorted({1, args.batch}):
        measure("base", model, batch, None)
    # The adapters of both cases at once: of one rank, then of mixed ones.
    num = args.adapters
    model = add_adapters(model, [args.rank] * num + [MIXED[i % len(MIXED)] for i in range(num)])
    measure("shared", model, args.batch, ["a0"] * args.batch)
    measure("distinct", model, args.batch, [f"a{i % num}" for i in range(args.batch)])
    measure("mixed", model, args.batch, [f"a{num + i % num}" for i in range(args.batch)])
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump({**facts, "results": results}, file, indent=1)
    if args.tiny:
        print("tiny shapes on a CPU: nothing was measured")


if __name__ == "__main__":
    main()

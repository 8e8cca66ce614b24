"""Prints what benches/gpu/run.sh left in a directory as one table. Python's own library is enough.

Kernels: as `weft bench kernels` says. Decode steps: milliseconds, the bound and the part of it that is
reached. The bound is DESIGN's: 4-bit weights in groups of 128, a 16-bit head, 16-bit keys and values of
512 tokens and the 16-bit matrices of the distinct adapters, each read once at the bandwidth that our
own copy was measured to have. S-LoRA's workloads: requests a second, first tokens, attainment.
"""

import json
import os
import re
import sys

# Of llama-3.1-8b.
LAYERS, HIDDEN, INTERMEDIATE, KV_WIDTH, VOCAB = 32, 4096, 14336, 1024, 128256
LINEARS = [(HIDDEN, HIDDEN), (HIDDEN, KV_WIDTH), (HIDDEN, KV_WIDTH), (HIDDEN, HIDDEN),
           (HIDDEN, INTERMEDIATE), (HIDDEN, INTERMEDIATE), (INTERMEDIATE, HIDDEN)]
WEIGHT_BYTES = LAYERS * sum(k * n for k, n in LINEARS) * 4.25 / 8 + VOCAB * HIDDEN * 2
KV_BYTES = LAYERS * 2 * KV_WIDTH * 2 * 512
RANK_BYTES = LAYERS * sum(k + n for k, n in LINEARS) * 2
MIXED = [8, 16, 32, 64]
# Of an H100, from its data sheet: only where no copy was measured.
NOMINAL_BYTES_PER_S = 3.35e12


def ranks_of(case, batch):
    """Ranks of the distinct adapters of a batch."""
    if case == "mixed":
        return [MIXED[i % 4] for i in range(batch)]
    return {"base": [], "shared": [16], "distinct": [16] * batch}[case]


def bound_ms(case, batch, bytes_per_s):
    read = WEIGHT_BYTES + batch * KV_BYTES + sum(ranks_of(case, batch)) * RANK_BYTES
    return 1e3 * read / bytes_per_s


def cell(value):
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def print_table(title, columns, rows):
    lines = [columns] + [[cell(value) for value in row] for row in rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    print(f"\n{title}")
    for line in lines:
        print("  ".join(text.ljust(width) for text, width in zip(line, widths)).rstrip())


def load(directory):
    parts = {}
    for name in sorted(os.listdir(directory)):
        part, extension = os.path.splitext(name)
        if extension == ".json":
            with open(os.path.join(directory, name), encoding="utf-8") as file:
                parts[part] = json.load(file)
    return parts


def print_kernels(found):
    columns = ["op", "shape", "error", "ms", "gb_per_s", "tflop_per_s", "bound_ms", "percent_of_bound"]
    rows = [[row[column] for column in columns] for row in found["kernels"]]
    print_table(f"kernels, {found['device']}, {found['num_wrong']} wrong", columns, rows)


def print_decode(parts, bytes_per_s, is_measured):
    rows = []
    found = [re.fullmatch(r"decode-(\d+)-(\w+)", part) for part in parts]
    for match in sorted(filter(None, found), key=lambda match: int(match[1])):
        batch, case, report = int(match[1]), match[2], parts[match[0]]
        ms = report["inter_token"]["p50_ms"] if is_measured else None
        bound = bound_ms(case, batch, bytes_per_s) if is_measured else None
        rows.append(["weft", batch, case, ms, bound, 100 * bound / ms if ms else None,
                     report["num_completed"], report["num_failed"]])
    for result in parts.get("peer", {}).get("results", []):
        is_real = parts["peer"]["measured"]
        rows.append(["transformers+peft", result["batch"], result["case"],
                     result["ms_per_step"] if is_real else None, None, None, result["batch"], 0])
    if rows:
        title = f"a decode step; bounds at {bytes_per_s / 1e12:.2f} TB/s" if is_measured else "decode steps"
        print_table(title, ["engine", "batch", "adapters", "ms", "bound ms", "% of bound",
                            "completed", "failed"], rows)


def print_slora(parts, is_measured):
    rows = []
    found = [re.fullmatch(r"slora-(\w+)-(\d+)", part) for part in parts]
    for match in sorted(filter(None, found), key=lambda match: (match[1], int(match[2]))):
        report = parts[match[0]]
        figures = [report["requests_per_s"], report["output_tokens_per_s"], report["ttft"]["p50_ms"],
                   report["ttft"]["p99_ms"], report["ttft_attainment"]]
        rows.append([match[1].upper(), int(match[2]), *(figures if is_measured else [None] * 5),
                     report["num_completed"], report["num_failed"]])
    if rows:
        print_table("S-LoRA's workloads", [
            "setting", "adapters", "requests/s", "output tokens/s", "first token p50, ms", "p99, ms",
            "within 6 s", "completed", "failed"], rows)


def main():
    parts = load(sys.argv[1])
    kernels = [parts[part] for part in ("kernels", "copy", "sanitizer-command") if part in parts]
    rates = [part["copy_gb_per_s"] for part in kernels if part["copy_gb_per_s"]]
    targets = [report["target"] for part, report in parts.items() if "target" in report]
    is_measured = not any("emulated" in word for word in targets + [part["device"] for part in kernels])
    if kernels:
        print_kernels(kernels[0])
    if "tokens" in parts:
        tokens = parts["tokens"]
        rows = [[answer["adapter"], answer["num_common"], len(answer["cpu"]), answer["same"]]
                for answer in tokens["answers"]]
        print_table(f"greedy tokens: {tokens['num_same']} of {tokens['num_prompts']} answers are the CPU's",
                    ["adapter", "common tokens", "of", "same"], rows)
    print_decode(parts, 1e9 * rates[0] if rates else NOMINAL_BYTES_PER_S, is_measured)
    print_slora(parts, is_measured)
    if not parts:
        print("there are no figures")


if __name__ == "__main__":
    main()

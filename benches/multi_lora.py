#!/usr/bin/env python3
"""Tokens per second with no adapter, one, sixteen and thirty-two, over HTTP, as a table of medians.

    cargo build --release && python3 benches/multi_lora.py

Starts `weft serve` with random adapters, runs `weft bench serve` on each workload in turn, whole
rounds at a time so that a machine's mood spreads over all of them, and prints the median of the
rounds. `--json FILE` keeps every figure. Needs nothing but the built binary and Python's own library.
"""

import json
import statistics
import sys

import harness
import svgplot

WORKLOADS = {
    "base only": [],
    "one r=8": ["--adapter-prefix", "r8-", "--num-adapters", "1"],
    "16 distinct r=8": ["--adapter-prefix", "r8-", "--num-adapters", "16", "--warmup", "16"],
    "32 of ranks 8, 16, 64": ["--adapter-prefix", "mix-", "--num-adapters", "32", "--warmup", "32"],
}


def main():
    parser = harness.parser(__doc__, rounds=3)
    parser.add_argument("--concurrency", default="1,8,16")
    parser.add_argument("--requests", type=int, default=48)
    parser.add_argument("--input-len", default="128")
    parser.add_argument("--output-len", default="64")
    args = parser.parse_args()
    if args.quick:
        args.rounds, args.concurrency, args.requests = 1, "1,4", 8
        args.input_len, args.output_len = "32", "16"
    concurrencies = [int(c) for c in args.concurrency.split(",")]

    with harness.Bench(args) as bench:
        for prefix, num, ranks in [("r8-", 16, "8"), ("mix-", 32, "8,16,64")]:
            bench.write_adapters(prefix, num, ranks)
        bench.serve()
        results = measure(args, concurrencies, bench)
    print_table(results, concurrencies)
    if args.json:
        with open(args.json, "w") as file:
            json.dump({"machine": harness.machine(), "results": results}, file, indent=1)
            file.write("\n")
    if args.svg:
        def bars(label, key):
            return svgplot.Bars(label, WORKLOADS, [
                (f"C={c}", [[r[key] for r in results
                             if (r["workload"], r["concurrency"]) == (workload, c)]
                            for workload in WORKLOADS]) for c in concurrencies])
        svgplot.write(args.svg, "One base, many adapters", [
            bars("output tokens/s", "output_tokens_per_s"),
            bars("inter-token latency, p50, ms", "inter_token_p50_ms"),
        ], harness.small_print(args))


def measure(args, concurrencies, bench):
    results = []
    for round_ in range(args.rounds):
        for concurrency in concurrencies:
            for workload, flags in WORKLOADS.items():
                # Another seed each time: no run meets prompts that an earlier one left in the cache.
                seed = len(results)
                report = bench.load(
                    "--concurrency", concurrency, "--num-requests", args.requests, "--input-len",
                    args.input_len, "--output-len", args.output_len, *flags, seed=seed)
                results.append({
                    "round": round_, "workload": workload, "concurrency": concurrency,
                    "seed": seed, "num_failed": report["num_failed"],
                    "output_tokens_per_s": report["output_tokens_per_s"],
                    "ttft_p50_ms": report["ttft"]["p50_ms"],
                    "inter_token_p50_ms": report["inter_token"]["p50_ms"],
                    "inter_token_p99_ms": report["inter_token"]["p99_ms"],
                })
                print(f"round {round_ + 1}, C={concurrency}, {workload}: "
                      f"{report['output_tokens_per_s']:.0f} tokens/s", file=sys.stderr)
    return results


def median(results, workload, concurrency, key):
    return statistics.median(
        r[key] for r in results if (r["workload"], r["concurrency"]) == (workload, concurrency))


def print_table(results, concurrencies):
    print("output tokens/s (median time to first token, inter-token latency), adapters' tax\n")
    print("| | " + " | ".join(f"C={c}" for c in concurrencies) + " |")
    print("|---" * (len(concurrencies) + 1) + "|")
    for workload in WORKLOADS:
        cells = []
        for c in concurrencies:
            rate = median(results, workload, c, "output_tokens_per_s")
            base = median(results, "base only", c, "output_tokens_per_s")
            tax = "" if workload == "base only" else f", −{100 * (1 - rate / base):.0f} %"
            cells.append(f"{rate:.0f} ({median(results, workload, c, 'ttft_p50_ms'):.0f} ms, "
                         f"{median(results, workload, c, 'inter_token_p50_ms'):.1f} ms){tax}")
        print(f"| {workload} | " + " | ".join(cells) + " |")
    failed = sum(r["num_failed"] for r in results)
    print(f"\n{failed} failed requests")
    low, high = concurrencies[0], concurrencies[-1]
    for workload in list(WORKLOADS)[1:]:
        ratio = (median(results, workload, high, "output_tokens_per_s")
                 / median(results, workload, low, "output_tokens_per_s"))
        print(f"{workload}: C={high} is {ratio:.1f}x C={low}")


if __name__ == "__main__":
    main()

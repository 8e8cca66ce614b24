#!/usr/bin/env python3
"""What a flood of cold adapters costs requests of the base.

    cargo build --release && python3 benches/flood.py --json flood.json --svg flood.svg

One tenant sends requests to the base. Another floods the server with tiny requests (few tokens in,
one out) for adapters in turn that do not fit in memory together, so that each is loaded again. A
third case sends the same flood to one adapter: what is left of the difference is the price of
loading. Cases alternate within a round, each with a server of its own.
"""

import harness

ALONE, WARM, COLD = "alone", "flood of one adapter", "flood of cold adapters"
CASES = [ALONE, WARM, COLD]


def main():
    parser = harness.parser(__doc__)
    parser.add_argument("--adapters", type=int, default=200)
    harness.add_memory_flags(parser, resident=16)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--targets", help="linears of the adapters, such as q,v; default: all")
    parser.add_argument("--flood-rate", type=float, default=10, help="requests per second")
    parser.add_argument("--flood-input-len", type=int, default=4)
    parser.add_argument("--concurrency", type=int, default=4)
    parser.add_argument("--requests", type=int, default=96)
    parser.add_argument("--input-len", type=int, default=128)
    parser.add_argument("--output-len", type=int, default=64)
    args = parser.parse_args()
    if args.quick:
        args.rounds, args.adapters, args.requests, args.resident = 2, 40, 16, 8
        args.input_len, args.output_len = 32, 16
    num_seqs = args.concurrency + args.resident

    def base_load(bench, seed):
        return bench.start_load(
            "--user", "base", "--concurrency", args.concurrency, "--num-requests", args.requests,
            "--input-len", args.input_len, "--output-len", args.output_len, seed=seed)

    def flood(bench, seconds, num_adapters, seed):
        return bench.start_load(
            "--user", "flood", "--adapter-prefix", "f-", "--num-adapters", num_adapters,
            "--distribution", "distinct", "--rate", args.flood_rate, "--cv", 0, "--warmup", 0,
            "--num-requests", max(1, int(args.flood_rate * seconds)),
            "--input-len", args.flood_input_len, "--output-len", 1, seed=1000 + seed)

    results = []
    with harness.Bench(args) as bench:
        size = bench.write_adapters("f-", args.adapters, args.rank, args.targets)
        length = args.input_len + args.output_len
        tokens = (args.concurrency * (length + harness.BLOCK_TOKENS)
                  + args.resident * (args.flood_input_len + harness.BLOCK_TOKENS))
        memory = harness.memory(args, tokens, size)
        serve_flags = ["--memory", memory, "--max-model-len", length + 1, "--max-num-seqs", num_seqs]
        bench.serve(*serve_flags)
        calm_s = base_load(bench, seed=999).report()["duration_s"]
        for round_ in range(args.rounds):
            for case in harness.alternating(round_, CASES):
                bench.serve(*serve_flags)
                other = None
                if case != ALONE:
                    # Longer than the base's load, as long as that is not twice as slow.
                    num_adapters = 1 if case == WARM else args.adapters
                    other = flood(bench, 2 * calm_s + 2, num_adapters, seed=round_)
                    harness.pause(0.5)
                report = base_load(bench, seed=round_).report()
                others = other.report() if other else {"num_completed": 0, "num_failed": 0, "errors": {}}
                results.append({"case": case, "round": round_, **harness.figures(report),
                                "flood_completed": others["num_completed"],
                                "flood_failed": others["num_failed"],
                                "flood_errors": others["errors"]})
                harness.progress(results[-1])
    setup = {**harness.setup(args), "memory_bytes": memory, "adapter_bytes": size}
    print(f"--memory {memory}: {tokens} tokens of KV cache and {args.resident} adapters\n")
    harness.table(results, CASES, harness.COLUMNS + [("flood requests", "flood_completed", "{:.0f}")])
    failed = sum(r["flood_failed"] for r in results)
    print(f"{failed} failed requests of the flood\n")
    verdicts = []
    for key, what, bar, is_at_most in [
            ("output_tokens_per_s", "output tokens/s", 0.95, False),
            ("itl_p50_ms", "p50 inter-token latency", 1.05, True),
            ("itl_p99_ms", "p99 inter-token latency", 1.05, True),
            ("e2e_p50_ms", "p50 end to end", 1.05, True)]:
        against_alone = harness.ratios(results, COLD, ALONE, key)
        verdicts.append(harness.verdict(f"base's {what}, cold flood over alone", against_alone, bar,
                                        is_at_most))
        against_warm = harness.ratios(results, COLD, WARM, key)
        verdicts.append(harness.figure(f"base's {what}, cold flood over warm flood", against_warm))
    harness.write_json(args, setup, results, verdicts)
    harness.plot(args, "The base beside a flood of cold adapters", results, CASES, [
        ("base's output tokens/s", "output_tokens_per_s"),
        ("base's inter-token latency, p50, ms", "itl_p50_ms"),
        ("base's inter-token latency, p99, ms", "itl_p99_ms"),
    ])


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""What adapters that come and go cost those that decode.

    cargo build --release && python3 benches/churn.py --json churn.json --svg churn.svg

Two hundred adapters of rank 16 lie on disk, and `--memory` holds the KV cache and sixteen of them.
Requests choose uniformly among all two hundred, or among sixteen that fit. Cases alternate within
a round, each with a server of its own, so that the first use of an adapter reads its files.
"""

import harness


def main():
    parser = harness.parser(__doc__)
    parser.add_argument("--adapters", type=int, default=200)
    harness.add_memory_flags(parser, resident=16)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--targets", help="linears of the adapters, such as q,v; default: all")
    parser.add_argument("--concurrency", type=int, default=8)
    parser.add_argument("--requests", type=int, default=256)
    parser.add_argument("--input-len", type=int, default=128)
    parser.add_argument("--output-len", type=int, default=64)
    args = parser.parse_args()
    if args.quick:
        args.rounds, args.adapters, args.requests = 2, 40, 32
        args.input_len, args.output_len = 32, 16
    names = {f"{args.resident} resident": args.resident, f"{args.adapters} on disk": args.adapters}
    resident, churn = names

    results = []
    with harness.Bench(args) as bench:
        size = bench.write_adapters("c-", args.adapters, args.rank, args.targets)
        length = args.input_len + args.output_len
        tokens = args.concurrency * (length + harness.BLOCK_TOKENS)
        memory = harness.memory(args, tokens, size)
        for round_ in range(args.rounds):
            for name in harness.alternating(round_, names):
                bench.serve("--memory", memory, "--max-model-len", length + 1, "--max-num-seqs",
                            args.concurrency)
                # The warm-up asks for the first sixteen in turn: in both cases they are there.
                report = bench.load(
                    "--adapter-prefix", "c-", "--num-adapters", names[name], "--distribution",
                    "uniform", "--warmup", args.resident, "--concurrency", args.concurrency,
                    "--num-requests", args.requests, "--input-len", args.input_len,
                    "--output-len", args.output_len, seed=round_)
                results.append({"case": name, "round": round_, **harness.figures(report)})
                harness.progress(results[-1])
    setup = {**harness.setup(args), "memory_bytes": memory, "adapter_bytes": size}
    print(f"--memory {memory}: {tokens} tokens of KV cache and {args.resident} adapters\n")
    harness.table(results, names, harness.COLUMNS)
    verdicts = [
        harness.verdict("p99 inter-token latency, churn over resident", harness.ratios(
            results, churn, resident, "itl_p99_ms"), 1.10, is_at_most=True),
        harness.verdict("output tokens/s, churn over resident", harness.ratios(
            results, churn, resident, "output_tokens_per_s"), 0.85, is_at_most=False),
    ]
    p50 = harness.ratios(results, churn, resident, "itl_p50_ms")
    verdicts.append(harness.figure("p50 inter-token latency, churn over resident", p50))
    harness.write_json(args, setup, results, verdicts)
    harness.plot(args, "Adapters that come and go", results, names, [
        ("inter-token latency, p50, ms", "itl_p50_ms"),
        ("inter-token latency, p99, ms", "itl_p99_ms"),
        ("output tokens/s", "output_tokens_per_s"),
    ])


if __name__ == "__main__":
    main()

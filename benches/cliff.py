#!/usr/bin/env python3
"""Throughput against the number of adapters, at one device budget: is there a cliff?

    cargo build --release && python3 benches/cliff.py --json cliff.json --svg cliff.svg

S-LoRA's setting S1: rank 8, popularity by a power law (alpha 0.3), prompts and outputs of 8 to 511
tokens. The budget holds the KV cache and `--resident` adapters, whatever their number. As in
S-LoRA, all adapters are in host memory before the clock starts; `--cold` leaves them on disk.
Adapters target q and v only, so that a thousand distinct ones take 1 GB of disk and not 5.
"""

import harness
import svgplot


def main():
    parser = harness.parser(__doc__, rounds=3)
    parser.add_argument("--counts", default="1,8,16,32,64,256,1024")
    parser.add_argument("--pair", default="5,1000", help="the two counts that the bar is about")
    parser.add_argument("--distributions", default="power:0.3,uniform",
                        help="the first is the pair's")
    harness.add_memory_flags(parser, resident=32)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--targets", default="q,v", help="linears of the adapters")
    parser.add_argument("--cold", action="store_true", help="the first use of an adapter reads its files")
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--input-len", default="8-511")
    parser.add_argument("--output-len", default="8-511")
    args = parser.parse_args()
    if args.quick:
        args.rounds, args.requests, args.resident = 2, 16, 8
        args.counts, args.pair, args.input_len, args.output_len = "1,8,64", "5,64", "8-32", "4-16"
    counts = sorted({int(n) for n in args.counts.split(",")})
    few, many = (int(n) for n in args.pair.split(","))
    distributions = args.distributions.split(",")
    first = distributions[0]
    # The pair one after the other: what is compared is measured close together.
    wanted = [(n, first) for n in (few, many)]
    wanted += [(n, d) for d in distributions for n in counts if (n, d) not in wanted]
    cases = {f"{n}, {distribution}": (n, distribution) for n, distribution in wanted}

    results = []
    with harness.Bench(args) as bench:
        num = max(*counts, few, many)
        size = bench.write_adapters("n-", num, args.rank, args.targets)
        longest = sum(int(str(length).split("-")[-1]) for length in (args.input_len, args.output_len))
        tokens = args.concurrency * (longest + harness.BLOCK_TOKENS)
        memory = harness.memory(args, tokens, size)
        bench.serve("--memory", memory, "--max-model-len", longest + 1, "--max-num-seqs",
                    args.concurrency)
        if not args.cold:
            bench.load("--adapter-prefix", "n-", "--num-adapters", num, "--distribution", "distinct",
                       "--num-requests", num, "--input-len", 1, "--output-len", 1, "--warmup", 0,
                       seed=0)
        for round_ in range(args.rounds):
            for name in harness.alternating(round_, cases):
                n, distribution = cases[name]
                # Another seed each time: no run meets prompts that an earlier one left behind.
                # Lengths must not differ between cases, so all of a round have the same.
                report = bench.load(
                    "--adapter-prefix", "n-", "--num-adapters", n, "--distribution", distribution,
                    "--warmup", 1, "--concurrency", args.concurrency, "--num-requests", args.requests,
                    "--input-len", args.input_len, "--output-len", args.output_len,
                    "--token-ids", harness.token_range(len(results)), seed=round_)
                results.append({"case": name, "round": round_, "num_adapters": n,
                                "distribution": distribution, **harness.figures(report)})
                harness.progress(results[-1])
    setup = {**harness.setup(args), "memory_bytes": memory, "adapter_bytes": size}
    print(f"adapters of rank {args.rank} on {args.targets}; --memory {memory}: {tokens} tokens of KV "
          f"cache and {args.resident} adapters\n")
    by_number = sorted(cases, key=lambda name: (distributions.index(cases[name][1]), cases[name][0]))
    harness.table(results, by_number, harness.COLUMNS)
    pair = harness.ratios(results, f"{many}, {first}", f"{few}, {first}", "output_tokens_per_s")
    verdicts = [harness.verdict(f"output tokens/s, {many} adapters over {few} ({first})", pair, 0.90,
                                is_at_most=False)]
    harness.write_json(args, setup, results, verdicts)
    if args.svg:
        def lines(label, key):
            series = [(d, [harness.column(results, f"{n}, {d}", key) for n in counts])
                      for d in distributions]
            return svgplot.Lines(label, "adapters", counts, series, log_x=True)
        svgplot.write(args.svg, "Throughput against the number of adapters", [
            lines("output tokens/s", "output_tokens_per_s"),
            lines("time to first token, p50, ms", "ttft_p50_ms"),
        ], harness.small_print(args))


if __name__ == "__main__":
    main()

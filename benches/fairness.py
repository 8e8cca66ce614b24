#!/usr/bin/env python3
"""A small tenant's time to first token, alone and beside a tenant that sends ten times as much.

    cargo build --release && python3 benches/fairness.py --json fairness.json --svg fairness.svg

Tenants are told apart by the `user` of their requests, and have adapters of their own. First a
closed loop measures how many requests the server answers in a second; the two tenants together then
send `--load` times as many, which the large one alone may be enough for. Cases alternate within a
round.
"""

import harness

ALONE, BESIDE = "alone", "beside the large tenant"
CASES = [ALONE, BESIDE]


def main():
    parser = harness.parser(__doc__, rounds=3)
    parser.add_argument("--factor", type=float, default=10, help="how much more the large tenant sends")
    parser.add_argument("--load", type=float, default=1.5, help="of both together, over the capacity")
    parser.add_argument("--adapters", type=int, default=4, help="of each tenant")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--max-num-seqs", type=int, default=16)
    parser.add_argument("--requests", type=int, default=40, help="of the small tenant")
    parser.add_argument("--input-len", type=int, default=128)
    parser.add_argument("--output-len", type=int, default=64)
    args = parser.parse_args()
    if args.quick:
        args.rounds, args.requests, args.input_len, args.output_len = 2, 8, 32, 16
    lengths = ["--input-len", args.input_len, "--output-len", args.output_len]

    def start(bench, tenant, rate, num_requests, seed):
        return bench.start_load(
            "--user", tenant, "--adapter-prefix", f"{tenant}-", "--num-adapters", args.adapters,
            "--distribution", "power:0.3", "--rate", rate, "--num-requests", num_requests,
            "--warmup", 0, *lengths, seed=seed)

    results = []
    with harness.Bench(args) as bench:
        for i, tenant in enumerate(["small", "large"]):
            bench.write_adapters(f"{tenant}-", args.adapters, args.rank, seed=100 * i)
        bench.serve("--max-num-seqs", args.max_num_seqs, "--max-queue", 100_000)
        full = bench.load(
            "--user", "calibration", "--adapter-prefix", "large-", "--num-adapters", args.adapters,
            "--concurrency", args.max_num_seqs, "--num-requests", 3 * args.max_num_seqs,
            "--warmup", args.adapters, *lengths, seed=999)
        capacity = full["requests_per_s"]
        rate = args.load * capacity / (1 + args.factor)
        print(f"{capacity:.2f} requests/s at most; the small tenant sends {rate:.3f}, the large one "
              f"{args.factor * rate:.2f}\n")
        # The small tenant's adapters are there, too, before the clock starts.
        bench.load("--user", "small", "--adapter-prefix", "small-", "--num-adapters", args.adapters,
                   "--num-requests", args.adapters, *lengths, seed=998)
        for round_ in range(args.rounds):
            for case in harness.alternating(round_, CASES):
                large = None
                if case == BESIDE:
                    num_requests = int(args.factor * args.requests * 1.1)
                    large = start(bench, "large", args.factor * rate, num_requests, seed=1000 + round_)
                    # Long enough that its first requests are in the batch.
                    harness.pause(0.05 * args.requests / rate)
                # The same requests at the same times in both cases, other tokens in each.
                report = bench.load(
                    "--user", "small", "--adapter-prefix", "small-", "--num-adapters", args.adapters,
                    "--distribution", "power:0.3", "--rate", rate, "--num-requests", args.requests,
                    "--warmup", 0, *lengths, "--token-ids", harness.token_range(len(results)),
                    seed=round_)
                others = large.report() if large else {"num_completed": 0, "num_failed": 0}
                results.append({"case": case, "round": round_, **harness.figures(report),
                                "large_completed": others["num_completed"],
                                "large_failed": others["num_failed"],
                                "large_ttft_p99_ms": others["ttft"]["p99_ms"] if large else 0.0})
                harness.progress(results[-1])
    setup = {**harness.setup(args), "capacity_requests_per_s": capacity, "small_rate": rate}
    harness.table(results, CASES, [
        ("small: first token p50, ms", "ttft_p50_ms", "{:.1f}"),
        ("p99, ms", "ttft_p99_ms", "{:.1f}"),
        ("end to end p50, ms", "e2e_p50_ms", "{:.1f}"),
        ("large: first token p99, ms", "large_ttft_p99_ms", "{:.1f}"),
        ("large: requests", "large_completed", "{:.0f}")])
    ratios = {key: harness.ratios(results, BESIDE, ALONE, key)
              for key in ("ttft_p99_ms", "ttft_p50_ms", "e2e_p50_ms")}
    verdicts = [harness.verdict("small tenant's p99 time to first token, beside over alone",
                                ratios["ttft_p99_ms"], 2.0, is_at_most=True),
                harness.figure("its p50 time to first token", ratios["ttft_p50_ms"]),
                harness.figure("its p50 end to end", ratios["e2e_p50_ms"])]
    harness.write_json(args, setup, results, verdicts)
    harness.plot(args, "A small tenant beside a large one", results, CASES, [
        ("small: time to first token, p50, ms", "ttft_p50_ms"),
        ("small: time to first token, p99, ms", "ttft_p99_ms"),
        ("small: end to end, p50, ms", "e2e_p50_ms"),
    ])


if __name__ == "__main__":
    main()

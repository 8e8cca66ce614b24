#!/usr/bin/env python3
"""What the engine's loop does with its time under load: the share that goes to computing.

    cargo build --release && python3 benches/busy.py

Starts `weft serve`, runs `weft bench serve` at each concurrency, and prints from `/metrics`
(`weft:loop_seconds_total`) what the loop's time went to meanwhile, waiting for requests left out, a step
at a time. Variants, such as `--variant "--pin-threads on"`, each get a server of their own, in turn.
"""

import json
import re
import statistics
import sys
import urllib.request

import harness

STATES = ("execute", "plan", "tell")


def main():
    parser = harness.parser(__doc__, rounds=3)
    parser.add_argument("--concurrency", default="1,16")
    parser.add_argument("--requests", type=int, default=48)
    parser.add_argument("--input-len", default="128")
    parser.add_argument("--output-len", default="64")
    parser.add_argument("--num-adapters", type=int, default=0, help="of rank 8; 0 is the base alone")
    parser.add_argument("--load-flags", default="", help="more flags for weft bench serve")
    parser.add_argument("--variant", action="append", help="flags for weft serve")
    args = parser.parse_args()
    if args.quick:
        args.rounds, args.requests, args.input_len, args.output_len = 1, 8, "32", "16"
    variants = args.variant or [""]
    load_flags = args.load_flags.split()
    results = []
    with harness.Bench(args) as bench:
        if args.num_adapters:
            bench.write_adapters("r8-", args.num_adapters, 8)
            load_flags += ["--adapter-prefix", "r8-", "--num-adapters", args.num_adapters]
        for round_ in range(args.rounds):
            for variant in harness.alternating(round_, variants):
                bench.serve(*variant.split())
                for concurrency in (int(c) for c in args.concurrency.split(",")):
                    results.append(measure(bench, args, round_, variant, concurrency, load_flags))
    cases = list(dict.fromkeys(result["case"] for result in results))
    harness.table(results, cases, harness.COLUMNS + [
        ("steps", "steps", "{:.0f}"), ("computing, %", "busy_percent", "{:.1f}"),
        *[(f"{state}, µs a step", f"{state}_us", "{:.0f}") for state in STATES]])
    if args.json:
        with open(args.json, "w") as file:
            json.dump({"machine": harness.machine(), "setup": harness.setup(args),
                       "results": results}, file, indent=1)
            file.write("\n")


def measure(bench, args, round_, variant, concurrency, load_flags):
    # A load of its own first: what is slow only once is not of this workload.
    for seed, num_requests in [(1000 + round_, concurrency), (round_, args.requests)]:
        before = loop(bench)
        report = bench.load(
            "--concurrency", concurrency, "--num-requests", num_requests, "--input-len",
            args.input_len, "--output-len", args.output_len, *load_flags, seed=100 * seed + concurrency)
    now = loop(bench)
    spent = {key: now[key] - before[key] for key in now}
    awake = sum(spent[state] for state in STATES)
    result = {
        "case": f"{variant} C={concurrency}".strip(), "round": round_, **harness.figures(report),
        "steps": spent["steps"], "busy_percent": 100 * spent["execute"] / awake,
        **{f"{state}_us": 1e6 * spent[state] / spent["steps"] for state in STATES},
    }
    harness.progress(result)
    return result


def loop(bench):
    """Seconds of the loop by state, and its steps, since the server's start."""
    with urllib.request.urlopen(f"{bench.url}/metrics") as answer:
        text = answer.read().decode()
    found = re.findall(r'^weft:loop_seconds_total\{.*state="(\w+)"\} (\S+)$', text, re.MULTILINE)
    steps = re.search(r"^weft:steps_total\{.*\} (\S+)$", text, re.MULTILINE)
    return {**{state: float(seconds) for state, seconds in found}, "steps": float(steps[1])}


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Which eviction policy? The simulator over policies, popularities and sizes of the memory.

    cargo build --release && python3 benches/policies.py

S-LoRA's setting S2: ranks 64, 32, 16 and 8 in turn; popularity by a power law, where alpha 1 is
uniform and smaller is more skewed. Same seed, same requests for all policies. Only time is
simulated (`weft bench simulate`): the figures do not depend on the machine, and neither does the
time of a step, which is that of `--costs`.
"""

import argparse
import itertools
import json
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import svgplot

ROOT = Path(__file__).resolve().parent.parent
SNAPSHOTS = ROOT / "benches" / "snapshots"
COLUMNS = ["memory", "alpha", "policy", "hit rate", "MB moved", "TTFT p50, ms", "TTFT p99, ms",
           "requests/s", "rejected"]


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weft", default=ROOT / "target" / "release" / "weft", help="the program")
    parser.add_argument("--policies", default="gdsf,lru,chameleon")
    parser.add_argument("--alphas", default="0.1,0.3,0.6,1.0")
    parser.add_argument("--memories", default="1GiB,2GiB")
    parser.add_argument("--adapters", type=int, default=200)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--rate", type=float, help="requests per second; default: the simulator's")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--costs", help="what `weft bench calibrate --json` wrote")
    parser.add_argument("--jobs", type=int, default=1, help="simulations at a time")
    parser.add_argument("--json", default=SNAPSHOTS / "policies.json")
    parser.add_argument("--svg", default=SNAPSHOTS / "policies.svg")
    args = parser.parse_args()
    policies, alphas, memories = (
        given.split(",") for given in (args.policies, args.alphas, args.memories))

    cases = list(itertools.product(memories, alphas, policies))
    with ThreadPoolExecutor(args.jobs) as pool:
        results = list(pool.map(lambda case: simulate(args, *case), cases))

    print("| " + " | ".join(COLUMNS) + " |")
    print("|---|---|---|" + "---:|" * (len(COLUMNS) - 3))
    for result in results:
        print("| " + " | ".join(cells(result)) + " |")
    setup = {name: getattr(args, name) for name in ("adapters", "requests", "rate", "seed", "costs")}
    text = json.dumps({"benchmark": "policies", "setup": setup, "results": results}, indent=1)
    Path(args.json).write_text(text + "\n")
    plot(args, policies, alphas, memories, results)


def simulate(args, memory, alpha, policy):
    """The figures of one simulation."""
    command = [args.weft, "bench", "simulate", "--json", "--workload", "slora", "--setting", "S2",
               "--adapters", args.adapters, "--requests", args.requests, "--seed", args.seed,
               "--alpha", alpha, "--memory", memory, "--eviction", policy]
    if args.rate:
        command += ["--rate", args.rate]
    if args.costs:
        command += ["--costs", args.costs]
    command = [str(word) for word in command]
    report = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return {
        "memory": memory,
        "alpha": float(alpha),
        "policy": policy,
        "hit_rate": report["adapters"]["hit_rate"],
        "bytes_moved": report["adapters"]["bytes_moved"],
        "ttft_p50_ms": report["ttft"]["p50_ms"],
        "ttft_p99_ms": report["ttft"]["p99_ms"],
        "requests_per_s": report["requests_per_s"],
        "num_rejected": report["num_rejected"],
    }


def cells(result):
    return [
        result["memory"],
        str(result["alpha"]),
        result["policy"],
        f"{100 * result['hit_rate']:.1f} %",
        f"{result['bytes_moved'] / 1e6:,.0f}",
        f"{result['ttft_p50_ms']:,.1f}",
        f"{result['ttft_p99_ms']:,.1f}",
        f"{result['requests_per_s']:.3f}",
        str(result["num_rejected"]),
    ]


def plot(args, policies, alphas, memories, results):
    """Bars over alpha: hit rates and megabytes, a panel for each size of the memory."""
    def bars(label, memory, value):
        def of(policy):
            found = [r for r in results if (r["memory"], r["policy"]) == (memory, policy)]
            return [[value(r)] for r in found]
        groups = [f"alpha {alpha}" for alpha in alphas]
        series = [(policy, of(policy)) for policy in policies]
        return svgplot.Bars(f"{label}, {memory}", groups, series)
    panels = [bars("adapter hit rate, %", memory, lambda r: 100 * r["hit_rate"])
              for memory in memories]
    panels += [bars("GB moved", memory, lambda r: r["bytes_moved"] / 1e9) for memory in memories]
    note = (f"simulated: S-LoRA's S2, {args.adapters} adapters, {args.requests} requests, "
            f"seed {args.seed}")
    svgplot.write(args.svg, "Eviction policies", panels, note)


if __name__ == "__main__":
    main()

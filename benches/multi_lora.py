#!/usr/bin/env python3
"""Tokens per second with no adapter, one, sixteen and thirty-two, over HTTP, as a table of medians.

    cargo build --release && python3 benches/multi_lora.py

Starts `weft serve` with random adapters, runs `weft bench serve` on each workload in turn, whole
rounds at a time so that a machine's mood spreads over all of them, and prints the median of the
rounds. `--json FILE` keeps every figure. Needs nothing but the built binary and Python's own library.
"""

import argparse
import json
import os
import platform
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request

WORKLOADS = {
    "base only": [],
    "one r=8": ["--adapter-prefix", "r8-", "--num-adapters", "1"],
    "16 distinct r=8": ["--adapter-prefix", "r8-", "--num-adapters", "16", "--warmup", "16"],
    "32 of ranks 8, 16, 64": ["--adapter-prefix", "mix-", "--num-adapters", "32", "--warmup", "32"],
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--weft", default="target/release/weft")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--concurrency", default="1,8,16")
    parser.add_argument("--requests", type=int, default=48)
    parser.add_argument("--input-len", default="128")
    parser.add_argument("--output-len", default="64")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", help="write every figure here")
    parser.add_argument("serve_flags", nargs="*", help="more flags for weft serve, after --")
    args = parser.parse_args()
    concurrencies = [int(c) for c in args.concurrency.split(",")]

    with tempfile.TemporaryDirectory() as scratch:
        adapters = os.path.join(scratch, "adapters")
        for prefix, num, ranks in [("r8-", 16, "8"), ("mix-", 32, "8,16,64")]:
            run(args.weft, "bench", "adapters", adapters, "--model", args.model,
                "--num", num, "--ranks", ranks, "--prefix", prefix)
        port = free_port()
        log = open(os.path.join(scratch, "server.log"), "w+")
        server = subprocess.Popen(
            [args.weft, "serve", args.model, "--adapter-dir", adapters, "--port", str(port),
             *args.serve_flags], stdout=subprocess.DEVNULL, stderr=log)
        try:
            wait_ready(server, port, log)
            results = measure(args, concurrencies, port, scratch)
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait()
    print_table(results, concurrencies)
    if args.json:
        with open(args.json, "w") as file:
            json.dump({"machine": machine(), "results": results}, file, indent=1)
            file.write("\n")


def measure(args, concurrencies, port, scratch):
    results = []
    report = os.path.join(scratch, "report.json")
    for round_ in range(args.rounds):
        for concurrency in concurrencies:
            for workload, flags in WORKLOADS.items():
                # Another seed each time: no run meets prompts that an earlier one left in the cache.
                seed = len(results)
                run(args.weft, "bench", "serve", "--url", f"http://127.0.0.1:{port}",
                    "--concurrency", concurrency, "--num-requests", args.requests, "--input-len", args.input_len,
                    "--output-len", args.output_len, "--seed", seed, "--json", report, *flags)
                with open(report) as file:
                    figures = json.load(file)
                results.append({
                    "round": round_, "workload": workload, "concurrency": concurrency,
                    "seed": seed, "num_failed": figures["num_failed"],
                    "output_tokens_per_s": figures["output_tokens_per_s"],
                    "ttft_p50_ms": figures["ttft"]["p50_ms"],
                    "inter_token_p50_ms": figures["inter_token"]["p50_ms"],
                    "inter_token_p99_ms": figures["inter_token"]["p99_ms"],
                })
                print(f"round {round_ + 1}, C={concurrency}, {workload}: "
                      f"{figures['output_tokens_per_s']:.0f} tokens/s", file=sys.stderr)
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


def run(*words):
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, words))} failed:\n{done.stderr}")


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def wait_ready(server, port, log):
    while True:
        if server.poll() is not None:
            log.seek(0)
            sys.exit(f"the server ended early:\n{log.read()}")
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1)
            return
        except OSError:
            time.sleep(0.1)


def machine():
    cpu = platform.processor()
    try:
        with open("/proc/cpuinfo") as file:
            cpu = next(line.split(":")[1].strip() for line in file if line.startswith("model name"))
    except OSError:
        pass
    return {"cpu": cpu, "cores": os.cpu_count(), "system": platform.platform()}


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Weft and llama-server, in turn on this machine: the same base, prompts, lengths and adapters.

    cargo build --release && python3 benches/peers/llama_server.py --json peers.json --svg peers.svg

Builds llama-server (benches/peers/build_llama_server.sh) unless `--peer-bin` names a folder that has
it and llama-quantize. The peer serves the demo's own Q4_1 file, and the same weights as Q4_0, Q8_0 and
bf16, made by its own tools: files of those formats, whose answers are nobody's concern here. Adapters
are converted to GGUF by `weft adapter convert`. Both servers are loaded by `weft bench serve`, over
HTTP, with prompts of random token ids; both get as many threads as the machine has.

Of each round, every workload runs on Weft and at once on the peer, so that a mood of the machine meets
both. All formats of the peer run in the first round; later rounds take the same file and whichever
format was best at a workload, so the table compares medians of `--rounds` with medians of as many.
Ratios are by round. In llama-server a request without a `lora` field runs with all adapters, so
requests for the base go to a server without adapters.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))

import harness
import svgplot

HERE = os.path.dirname(os.path.abspath(__file__))
SAME = "Q4_1"
# name: (adapters' prefix, number, concurrency, requests)
WORKLOADS = {
    "base, C=1": (None, 0, 1, 16),
    "base, C=16": (None, 0, 16, 48),
    "16 distinct r=8, C=16": ("r8-", 16, 16, 32),
    "32 of ranks 8, 16, 64, C=16": ("mix-", 32, 16, 32),
}
# what is compared, on which workload, by which figure, bars against the same file and the best peer
BARS = [
    ("base, C=1: output tokens/s", "base, C=1", "output_tokens_per_s", 2.2, 2.0),
    ("base, C=16: output tokens/s", "base, C=16", "output_tokens_per_s", 6.0, 3.0),
    ("base, C=1: time to first token", "base, C=1", "ttft_p50_ms", 1 / 5, 1 / 2.5),
    ("16 distinct r=8, C=16: output tokens/s", "16 distinct r=8, C=16", "output_tokens_per_s", 8.0, 6.0),
    ("32 of ranks 8, 16, 64, C=16: output tokens/s", "32 of ranks 8, 16, 64, C=16",
     "output_tokens_per_s", 8.0, 6.0),
]


def main():
    parser = harness.parser(__doc__, rounds=3)
    parser.add_argument("--peer-bin", help="folder with llama-server and llama-quantize")
    parser.add_argument("--formats", default="Q4_1,Q4_0,Q8_0,BF16", help="of the peer; Q4_1 is the file itself")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of each server")
    parser.add_argument("--weft-isa", default="auto", help="--cpu-isa of Weft, for a peer that is built without "
                        "some instructions")
    parser.add_argument("--workloads", help="only those whose names contain this")
    parser.add_argument("--input-len", default="128")
    parser.add_argument("--output-len", default="64")
    args = parser.parse_args()
    workloads = {name: case for name, case in WORKLOADS.items() if (args.workloads or "") in name}
    if args.quick:
        args.rounds, args.output_len = 1, "8"
        workloads = {name: (*case[:3], 4) for name, case in workloads.items()}
    formats = args.formats.split(",")
    binaries = args.peer_bin or output(os.path.join(HERE, "build_llama_server.sh"))

    results = []
    with harness.Bench(args) as bench, tempfile.TemporaryDirectory() as scratch:
        model = output(args.weft, "pull", args.model).splitlines()[-1].split()[-1]
        peer = Peer(args, binaries, files(binaries, model, formats, scratch), scratch)
        adapters = {}
        for prefix, num, ranks in [("r8-", 16, "8"), ("mix-", 32, "8,16,64")]:
            bench.write_adapters(prefix, num, ranks)
            adapters[prefix] = converted(args, bench.adapters, prefix, num, scratch)
        wanted = {name: formats for name in workloads}
        for round_ in range(args.rounds):
            for name, (prefix, num, concurrency, requests) in workloads.items():
                flags = ["--concurrency", concurrency, "--new-connections"]
                sizes = ["--num-requests", requests, "--input-len", args.input_len, "--output-len",
                         args.output_len]
                if prefix:
                    flags += ["--adapter-prefix", prefix, "--num-adapters", num]
                # No run meets prompts that an earlier one left behind.
                seed = 100 * round_ + list(workloads).index(name)
                servers = harness.alternating(round_, ["weft", *wanted[name]])
                for server in servers:
                    if server == "weft":
                        bench.serve("--threads", args.threads, "--cpu-isa", args.weft_isa)
                        report = measured(bench, flags, sizes, prefix, num, seed)
                        bench.stop()
                    else:
                        bench.url = peer.start(server, adapters.get(prefix, []))
                        naming = ["--adapter-naming", "lora-id"] if prefix else []
                        report = measured(bench, [*flags, *naming], sizes, prefix, num, seed)
                        peer.stop()
                    results.append({"case": f"{server}: {name}", "server": server, "workload": name,
                                    "round": round_, "seed": seed, **harness.figures(report),
                                    "ttft_max_ms": report["ttft"]["max_ms"]})
                    harness.progress(results[-1])
            if round_ == 0:
                for name in workloads:
                    best = max(formats, key=lambda f: value(results, f, name, "output_tokens_per_s"))
                    first = min(formats, key=lambda f: value(results, f, name, "ttft_p50_ms"))
                    wanted[name] = [f for f in formats if f in (SAME, best, first)]
    print_table(results, workloads, formats)
    verdicts = compare(results, formats, args.rounds)
    harness.write_json(args, {**harness.setup(args), "peer_bin": None, "peer": "llama.cpp b11434, GGML_NATIVE",
                              "peer_flags": Peer.FLAGS}, results, verdicts)
    if args.svg:
        servers = ["weft", *formats]
        svgplot.write(args.svg, "Weft and llama-server, output tokens/s", [
            svgplot.Bars(label, list(workloads), [
                (server if server == "weft" else f"llama-server {server}",
                 [values(results, server, name, key) or [0] for name in workloads])
                for server in servers], log_y=is_log)
            for label, key, is_log in [("output tokens/s", "output_tokens_per_s", False),
                                       ("first token p50, ms", "ttft_p50_ms", True)]
        ], harness.small_print(args))


def measured(bench, flags, sizes, prefix, num, seed):
    """A load. Before the clock starts, each adapter is asked for once: llama-server has loaded them all
    when it is ready, Weft loads them when they are first wanted."""
    if prefix:
        bench.load(*flags, "--num-requests", num, "--input-len", 1, "--output-len", 1, "--warmup", 0,
                   seed=1000 + seed)
    return bench.load(*flags, *sizes, seed=seed)


class Peer:
    """One llama-server at a time."""

    # As many places as clients, no copies of prompts in host memory, no web page.
    FLAGS = ["--parallel", "16", "--ctx-size", "4096", "--cache-ram", "0", "--no-webui",
             "--lora-init-without-apply"]

    def __init__(self, args, binaries, models, scratch):
        self.args, self.binaries, self.models, self.scratch = args, binaries, models, scratch
        self.process = None

    def start(self, form, adapters):
        port = harness.free_port()
        log = open(os.path.join(self.scratch, "llama-server.log"), "w+")
        words = [os.path.join(self.binaries, "llama-server"), "--model", self.models[form],
                 "--threads", str(self.args.threads), "--threads-batch", str(self.args.threads),
                 "--host", "127.0.0.1", "--port", str(port), *self.FLAGS]
        if adapters:
            words += ["--lora", ",".join(adapters)]
        self.process = subprocess.Popen(words, stdout=log, stderr=subprocess.STDOUT)
        url = f"http://127.0.0.1:{port}"
        while True:
            if self.process.poll() is not None:
                log.seek(0)
                sys.exit(f"llama-server ended early:\n{log.read()[-4000:]}")
            try:
                urllib.request.urlopen(f"{url}/health", timeout=1)
                return url
            except OSError:
                time.sleep(0.1)

    def stop(self):
        self.process.terminate()
        self.process.wait()


def files(binaries, model, formats, scratch):
    """The model in each format: `model` itself, and others made of it."""
    made = {SAME: model}
    for form in formats:
        if form != SAME:
            made[form] = os.path.join(scratch, f"{form}.gguf")
            harness.run(os.path.join(binaries, "llama-quantize"), "--allow-requantize", "--pure", model,
                        made[form], form)
    return made


def converted(args, folder, prefix, num, scratch):
    """GGUF adapters, in order."""
    made = []
    for i in range(num):
        made.append(os.path.join(scratch, f"{prefix}{i}.gguf"))
        harness.run(args.weft, "adapter", "convert", os.path.join(folder, f"{prefix}{i}"), made[-1],
                    "--base", args.model)
    return made


def output(*words):
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, words))} failed:\n{done.stderr[-4000:]}")
    return done.stdout.strip()


def values(results, server, workload, key):
    return harness.column(results, f"{server}: {workload}", key)


def value(results, server, workload, key):
    return statistics.median(values(results, server, workload, key))


def print_table(results, workloads, formats):
    print("output tokens/s (first token: p50, max), medians\n")
    print("| | " + " | ".join(workloads) + " |")
    print("|---" * (len(workloads) + 1) + "|")
    for server in ["weft", *formats]:
        cells = [f"{value(results, server, name, 'output_tokens_per_s'):.1f} "
                 f"({value(results, server, name, 'ttft_p50_ms') / 1e3:.2f} s, "
                 f"{value(results, server, name, 'ttft_max_ms') / 1e3:.2f} s)" for name in workloads]
        print(f"| {'Weft, Q4_1' if server == 'weft' else 'llama-server, ' + server} | "
              + " | ".join(cells) + " |")
    failed = sum(r["num_failed"] for r in results)
    print(f"\n{failed} failed requests")


def compare(results, formats, rounds):
    """Weft over the peer, by round, against the bars."""
    verdicts = []
    for what, workload, key, same_bar, best_bar in BARS:
        if not values(results, "weft", workload, key):
            continue
        is_time = key.endswith("_ms")
        pick = min if is_time else max
        best = pick([f for f in formats if len(values(results, f, workload, key)) == rounds],
                    key=lambda f: value(results, f, workload, key))
        for form, bar in [(SAME, same_bar), (best, best_bar)]:
            measured = harness.ratios(results, f"weft: {workload}", f"{form}: {workload}", key)
            kind = "the same file" if bar is same_bar else f"its best, {form}"
            verdicts.append(harness.verdict(f"{what}, over {kind}", measured, round(bar, 3), is_time))
    return verdicts


if __name__ == "__main__":
    main()

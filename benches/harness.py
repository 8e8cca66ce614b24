"""What the benchmarks share: adapters on disk, a server, loads on it, and figures with their machine.

Needs nothing but the built binary and Python's own library.
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

import svgplot

# Of smollm2-135m-instruct: 30 layers, keys and values, 3 heads of 64, f16.
DEMO_KV_BYTES_PER_TOKEN = 30 * 2 * 3 * 64 * 2
# Tokens of a KV block, which is also the unit in which adapters take memory.
BLOCK_TOKENS = 16


def parser(doc, rounds=5):
    """The flags that all benchmarks have."""
    flags = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--weft", default="target/release/weft")
    flags.add_argument("--model", default="smollm2-135m-instruct")
    flags.add_argument("--rounds", type=int, default=rounds)
    flags.add_argument("--quick", action="store_true", help="tiny: only to see whether it works")
    flags.add_argument("--json", help="write every figure here")
    flags.add_argument("--svg", help="write a plot here")
    flags.add_argument("serve_flags", nargs="*", help="more flags for weft serve, after --")
    return flags


class Bench:
    """A directory of adapters and a server of them. Use it in a `with`."""

    def __init__(self, args):
        self.args = args
        self.scratch = tempfile.TemporaryDirectory()
        self.adapters = os.path.join(self.scratch.name, "adapters")
        os.mkdir(self.adapters)
        self.server = None
        self.loads = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for load in self.loads:
            load.cancel()
        self.stop()
        self.scratch.cleanup()

    def write_adapters(self, prefix, num, ranks, targets=None, seed=0):
        """Writes random adapters `prefix`0, `prefix`1, … and returns the bytes of the largest."""
        words = [self.args.weft, "bench", "adapters", self.adapters, "--model", self.args.model,
                 "--num", num, "--ranks", ranks, "--prefix", prefix, "--seed", seed]
        run(*words, *(["--target-modules", targets] if targets else []))
        sizes = [os.path.getsize(os.path.join(self.adapters, f"{prefix}{i}",
                                              "adapter_model.safetensors")) for i in range(num)]
        print(f"{num} adapters {prefix}*: rank {ranks}, {targets or 'all linears'}, "
              f"{max(sizes) / 1e6:.2f} MB each, {sum(sizes) / 1e6:.0f} MB in all", file=sys.stderr)
        return max(sizes)

    def serve(self, *flags):
        """Starts a server, another one if there is one, and waits until it is ready."""
        self.stop()
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        log = open(os.path.join(self.scratch.name, "server.log"), "w+")
        words = [self.args.weft, "serve", self.args.model, "--adapter-dir", self.adapters,
                 "--port", port, *flags, *self.args.serve_flags]
        self.server = subprocess.Popen(
            [str(word) for word in words], stdout=subprocess.DEVNULL, stderr=log)
        while True:
            if self.server.poll() is not None:
                log.seek(0)
                sys.exit(f"the server ended early:\n{log.read()}")
            try:
                urllib.request.urlopen(f"{self.url}/health", timeout=1)
                return
            except OSError:
                time.sleep(0.1)

    def stop(self):
        if self.server:
            self.server.send_signal(signal.SIGTERM)
            try:
                self.server.wait(timeout=60)
            except subprocess.TimeoutExpired:
                self.server.kill()
                self.server.wait()
            self.server = None

    def start_load(self, *flags, seed):
        """Begins a load; [`Load.report`] awaits it."""
        report = os.path.join(self.scratch.name, f"report-{len(self.loads)}.json")
        words = [self.args.weft, "bench", "serve", "--url", self.url, "--model", self.args.model,
                 "--seed", seed, "--json", report, *flags]
        self.loads.append(Load([str(word) for word in words], report))
        return self.loads[-1]

    def load(self, *flags, seed):
        """Runs a load to its end and returns its report."""
        return self.start_load(*flags, seed=seed).report()


class Load:
    """A running `weft bench serve`."""

    def __init__(self, words, report):
        self.words, self.path = words, report
        self.process = subprocess.Popen(
            words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

    def report(self):
        _, said = self.process.communicate()
        if self.process.returncode != 0:
            sys.exit(f"{' '.join(self.words)} failed:\n{said}")
        with open(self.path) as file:
            return json.load(file)

    def cancel(self):
        """Ends it if it runs. Its requests are cancelled with its connections."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.communicate()


def figures(report):
    """What is kept of a report."""
    kept = {key: report[key] for key in (
        "duration_s", "num_completed", "num_failed", "num_short", "requests_per_s", "output_tokens_per_s",
        "total_tokens_per_s", "errors")}
    for key, name in [("ttft", "ttft"), ("inter_token", "itl"), ("end_to_end", "e2e")]:
        for percentile in ("mean", "p50", "p99"):
            kept[f"{name}_{percentile}_ms"] = report[key][f"{percentile}_ms"]
    return kept


def alternating(round_, names):
    """The order of a round: every other one is reversed, so that a drift of the machine cancels."""
    return list(names) if round_ % 2 == 0 else list(reversed(names))


def column(results, name, key):
    """A figure of all rounds of one case, by round."""
    found = [r for r in results if r["case"] == name]
    return [r[key] for r in sorted(found, key=lambda r: r["round"])]


def ratios(results, case, reference, key):
    """`case` over `reference`, round by round: what a machine does to both cancels."""
    return [a / b if b else float("nan")
            for a, b in zip(column(results, case, key), column(results, reference, key))]


def verdict(what, measured, limit, is_at_most):
    """Prints a median of paired ratios beside its bar, and returns it with the bar for the JSON."""
    middle = statistics.median(measured)
    is_met = middle <= limit if is_at_most else middle >= limit
    sign = "<=" if is_at_most else ">="
    print(f"{what}: {middle:.3f} ({min(measured):.3f} to {max(measured):.3f} over {len(measured)} "
          f"rounds), bar {sign} {limit}: {'met' if is_met else 'MISSED'}")
    return {"what": what, "median": middle, "ratios": measured, "bar": f"{sign} {limit}",
            "is_met": is_met}


def figure(what, measured):
    """Prints a median of paired ratios that no bar is about, and returns it for the JSON."""
    middle = statistics.median(measured)
    print(f"{what}: {middle:.3f} ({min(measured):.3f} to {max(measured):.3f})")
    return {"what": what, "median": middle, "ratios": measured, "bar": None}


def table(results, cases, columns):
    """Prints medians of the rounds: `columns` is (heading, key, format)."""
    print("| | " + " | ".join(heading for heading, _, _ in columns) + " |")
    print("|---" * (len(columns) + 1) + "|")
    for case in cases:
        cells = [form.format(statistics.median(column(results, case, key)))
                 for _, key, form in columns]
        print(f"| {case} | " + " | ".join(cells) + " |")
    failed = sum(r["num_failed"] for r in results)
    errors = sorted({error for r in results for error in r["errors"]})
    print(f"\n{failed} failed requests" + "".join(f"\n  {error}" for error in errors))


# What most tables show.
COLUMNS = [
    ("output tokens/s", "output_tokens_per_s", "{:.1f}"),
    ("requests/s", "requests_per_s", "{:.2f}"),
    ("inter-token p50, ms", "itl_p50_ms", "{:.2f}"),
    ("p99, ms", "itl_p99_ms", "{:.2f}"),
    ("first token p50, ms", "ttft_p50_ms", "{:.1f}"),
    ("p99, ms", "ttft_p99_ms", "{:.1f}"),
]


def progress(result):
    print(f"round {result['round'] + 1}, {result['case']}: {result['output_tokens_per_s']:.0f} tokens/s, "
          f"inter-token p99 {result['itl_p99_ms']:.1f} ms, first token p99 {result['ttft_p99_ms']:.0f} ms",
          file=sys.stderr)


def pause(seconds):
    time.sleep(seconds)


def token_range(number):
    """`--token-ids` of a load: other ids than its neighbours', and nothing else changes. So loads of
    one seed are alike, and no one finds what another left in the prefix cache."""
    low = 1000 + 1200 * (number % 24)
    return f"{low}-{low + 1200}"


def setup(args):
    """The flags, for the JSON."""
    return {key: value for key, value in vars(args).items() if key not in ("json", "svg", "quick")}


def plot(args, title, results, cases, panels):
    """`--svg`: a panel of bars, one for each case, for every (label, key) of `panels`."""
    if args.svg:
        svgplot.write(args.svg, title, [
            svgplot.Bars(label, cases, [("", [column(results, case, key) for case in cases])])
            for label, key in panels
        ], small_print(args))


def write_json(args, setup, results, verdicts):
    if args.quick:
        print("\na quick run: it says whether this works, not how fast")
    if not args.json:
        return
    whole = {"machine": machine(), "quick": args.quick, "setup": setup, "verdicts": verdicts,
             "results": results}
    with open(args.json, "w") as file:
        json.dump(whole, file, indent=1)
        file.write("\n")


def memory(args, num_tokens, adapter_bytes):
    """`--memory`, or bytes that hold the KV cache of `num_tokens` and `--resident` adapters."""
    return args.memory or memory_for(num_tokens, args.resident, adapter_bytes, args.kv_bytes_per_token)


def add_memory_flags(flags, resident):
    flags.add_argument("--resident", type=int, default=resident,
                       help="adapters that fit beside the KV cache")
    flags.add_argument("--kv-bytes-per-token", type=int, default=DEMO_KV_BYTES_PER_TOKEN,
                       help="of the model; the default is smollm2-135m's in f16")
    flags.add_argument("--memory", type=int, help="bytes; default: every request's KV cache at its "
                       "longest, and --resident adapters")


def memory_for(num_tokens, num_adapters, adapter_bytes, kv_bytes_per_token):
    """Bytes that hold the KV cache of `num_tokens` and so many adapters, in whole blocks each."""
    block = BLOCK_TOKENS * kv_bytes_per_token
    blocks = -(-num_tokens // BLOCK_TOKENS) + num_adapters * -(-adapter_bytes // block)
    return blocks * block


def small_print(args):
    return (f"{args.model}, {machine()['cpu']}, {machine()['cores']} cores; medians of "
            f"{args.rounds} rounds, whiskers from least to most" + (" (quick run)" if args.quick else ""))


def run(*words):
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, words))} failed:\n{done.stderr}")


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def machine():
    cpu = platform.processor()
    try:
        with open("/proc/cpuinfo") as file:
            cpu = next(line.split(":")[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return {"cpu": cpu, "cores": os.cpu_count(), "system": platform.platform()}

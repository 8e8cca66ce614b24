"""Whether a GPU draws the CPU's greedy tokens. In: a built `weft`, a model, adapters. Out: a line a
prompt, JSON, and status 1 if fewer than nine of ten answers are the same.

Two servers, one on each device, get the same ten prompts: those of demo/heldout_answers.json, two for
each demo adapter. --tiny takes a model and adapters of the tests, and shows that it works.
Python's own library is enough.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")
GOLDEN = os.path.join(ROOT, "tests", "golden")
BAR = 0.9


class Server:
    """A server that ends with its `with`."""

    def __init__(self, weft, device, flags):
        self.log = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(
            [weft, "serve", *flags, "--device", device, "--port", "0"],
            stdout=subprocess.PIPE, stderr=self.log, text=True)
        for line in self.process.stdout:
            _, found, rest = line.partition("http://")
            if found:
                self.url = "http://" + rest.split()[0]
                return
        self.process.wait()
        self.log.seek(0)
        sys.exit(f"the server with --device {device} ended early:\n{self.log.read()}")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait()
        self.log.close()

    def tokens(self, model, prompt, max_tokens):
        """A greedy answer."""
        body = {"model": model, "prompt": prompt, "max_tokens": max_tokens, "temperature": 0,
                "return_token_ids": True}
        request = urllib.request.Request(
            f"{self.url}/v1/completions", json.dumps(body).encode(),
            {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request) as answer:
                return json.load(answer)["choices"][0]["token_ids"]
        except urllib.error.HTTPError as error:
            sys.exit(f"{self.url} answers {error.code}: {error.read().decode()}")


def demo():
    """Flags of a server, and (adapter, prompt)."""
    with open(os.path.join(ROOT, "demo", "heldout_answers.json"), encoding="utf-8") as file:
        answers = json.load(file)
    prompts = [(name, case["prompt_ids"]) for name, cases in answers.items() for case in cases[:2]]
    adapters = os.path.join(ROOT, "demo", "adapters")
    return ["smollm2-135m-instruct", "--adapter-dir", adapters, "--memory", "1GiB"], prompts


def tiny():
    """The same, of the tests."""
    names = ["rank8-linears", "rank3-q-v"]
    flags = [os.path.join(GOLDEN, "models", "tiny-llama"), "--memory", "16MiB"]
    for name in names:
        flags += ["--adapter", f"{name}={os.path.join(GOLDEN, 'adapters', name)}"]
    models = ["tiny-llama", *names]
    return flags, [(models[i % 3], [5 + i, 60 + 7 * i, 7, 200 - i]) for i in range(10)]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weft", default="target/release/weft")
    parser.add_argument("--tiny", action="store_true", help="only to see whether it works")
    parser.add_argument("--max-tokens", type=int, default=32)
    parser.add_argument("--json", help="write every answer here")
    args = parser.parse_args()
    # The servers end with this, whatever ends it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    flags, prompts = tiny() if args.tiny else demo()
    results, num_same = [], 0
    with Server(args.weft, "cpu", flags) as cpu, Server(args.weft, "cuda", flags) as gpu:
        for model, prompt in prompts:
            expected = cpu.tokens(model, prompt, args.max_tokens)
            got = gpu.tokens(model, prompt, args.max_tokens)
            pairs = zip(expected, got)
            common = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(expected), len(got)))
            is_same = expected == got
            num_same += is_same
            results.append(dict(adapter=model, cpu=expected, gpu=got, num_common=common, same=is_same))
            print(f"{model}: {'the same' if is_same else 'another token'} "
                  f"after {common} of {len(expected)} tokens", flush=True)
    is_met = num_same >= BAR * len(prompts)
    print(f"{num_same} of {len(prompts)} answers are the same, bar {BAR:.0%}: {'met' if is_met else 'MISSED'}")
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump(dict(num_prompts=len(prompts), num_same=num_same, is_met=is_met, answers=results),
                      file, indent=1)
    sys.exit(not is_met)


if __name__ == "__main__":
    main()

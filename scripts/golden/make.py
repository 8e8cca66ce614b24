"""Makes the golden files that the Rust tests read, from transformers, peft and gguf.

    pip install -r scripts/golden/requirements.txt
    python scripts/golden/make.py --out tests/golden [--gguf SmolLM2-135M-Instruct.Q4_1.gguf] [--only models]

Everything is seeded: the same versions write the same values. Parts that need the demo base are left
out without --gguf. Scripts called make_*.py can also be run alone.
"""

import argparse
import importlib
import os
import pathlib
import subprocess
import sys

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
sys.dont_write_bytecode = True
HERE = pathlib.Path(__file__).parent

# Name -> module with `make(out)`, or `make(out, gguf)` where the demo base is needed.
PARTS = {
    "models": "tiny_models",
    "adapters": "tiny_adapters",
    "bases": "tiny_bases",
    "activated": "tiny_activated",
    "compositions": "tiny_compositions",
    "methods": "tiny_methods",
    "quantized": "tiny_quantized_methods",
    "gguf": "gguf_files",
    "chat": "chat_templates",
}
NEED_BASE = ("chat",)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, default=HERE.parents[1] / "tests" / "golden")
    parser.add_argument("--gguf", type=pathlib.Path, help="the demo base")
    parser.add_argument("--only", choices=[*PARTS, "base"], action="append", help="parts to make; default all")
    args = parser.parse_args()
    if os.environ.get("PYTHONHASHSEED") != "0":
        # peft saves a set of names in the order of their hashes.
        os.environ["PYTHONHASHSEED"] = "0"
        os.execv(sys.executable, [sys.executable, *sys.argv])
    import torch

    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    for part, module in PARTS.items():
        if args.only and part not in args.only:
            continue
        if part not in NEED_BASE:
            importlib.import_module(module).make(args.out)
        elif args.gguf:
            importlib.import_module(module).make(args.out, args.gguf)
    if args.gguf and (not args.only or "base" in args.only):
        script = [sys.executable, str(HERE / "make_demo_base.py")]
        subprocess.run([*script, "--gguf", str(args.gguf), "--out", str(args.out)], check=True)


if __name__ == "__main__":
    main()

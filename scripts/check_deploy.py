#!/usr/bin/env python3
"""Checks all of deploy/ that can be checked without a cluster. In: a built weft, a base. Out: a line
for each case, `N passed, N failed` last, and status 1 if one failed.

    python3 scripts/check_deploy.py --weft target/release/weft --model base.gguf

Installs deploy/requirements.txt into a virtual environment in $WEFT_CACHE, or target/ci-cache.
"""

import argparse
import os
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts" / "deploy"))


def environment():
    """The interpreter of an environment that has what deploy/requirements.txt says."""
    cache = Path(os.environ.get("WEFT_CACHE") or ROOT / "target" / "ci-cache")
    home = cache / "deploy-venv"
    python, done = home / "bin" / "python", home / "requirements.txt"
    wanted = (ROOT / "deploy" / "requirements.txt").read_text()
    if not done.exists() or done.read_text() != wanted:
        venv.create(home, with_pip=True, clear=True)
        subprocess.run(
            [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input",
             "-r", ROOT / "deploy" / "requirements.txt"], check=True)
        done.write_text(wanted)
    return home


class Report:
    """Counts cases and prints a line for each."""

    def __init__(self):
        self.passed = self.failed = 0

    def case(self, name, problems):
        """`problems`: what is wrong, as sentences; none is a pass."""
        problems = list(problems)
        print(f"{'FAILED' if problems else 'ok':6} {name}", flush=True)
        for problem in problems:
            print(f"       {problem}")
        self.failed += bool(problems)
        self.passed += not problems


def main():
    flags = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--weft", type=Path, required=True, help="the built program")
    flags.add_argument("--model", type=Path, required=True, help="a base that it can serve")
    args = flags.parse_args()
    home = environment()
    if Path(sys.prefix).resolve() != home.resolve():
        os.execv(home / "bin" / "python", [str(home / "bin" / "python"), *sys.argv])

    # Not before: they need the environment.
    import chart
    import refused_values
    import served
    import watched
    report = Report()
    chart.check_dockerfiles(report, home / "bin" / "hadolint")
    renders = chart.check_renders(report)
    refused_values.check(report)
    served.check_arguments(report, renders, args.weft.resolve())
    metrics = served.check_pods(report, renders, args.weft.resolve(), args.model.resolve())
    watched.check(report, renders, metrics)
    print(f"\n{report.passed} passed, {report.failed} failed")
    sys.exit(report.failed > 0)


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Checks all of deploy/ that can be checked without a cluster. In: a built weft, a base. Out: a line
for each case, `N passed, N failed` last, and status 1 if one failed.

    python3 scripts/check_deploy.py --weft target/release/weft --model base.gguf

Installs deploy/requirements.txt into a directory of its own in $WEFT_CACHE, or target/ci-cache.
"""

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts" / "deploy"))


def packages():
    """A directory that has what deploy/requirements.txt says, and that Python imports from."""
    cache = Path(os.environ.get("WEFT_CACHE") or ROOT / "target" / "ci-cache")
    requirements = ROOT / "deploy" / "requirements.txt"
    # Wheels are for one version of Python.
    home = cache / f"deploy-python{sys.version_info[0]}.{sys.version_info[1]}"
    done = home / requirements.name
    if not done.exists() or done.read_bytes() != requirements.read_bytes():
        cache.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(home, ignore_errors=True)
        subprocess.run(
            [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
             "--no-input", "--root-user-action=ignore", "--only-binary=:all:", "--target", home,
             "--requirement", requirements], check=True)
        shutil.copy(requirements, done)
    sys.path.insert(0, str(home))
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
    home = packages()

    # Not before: they need the packages.
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

"""Measures ghealth beside its peers, and how its cost grows.

python -m bench.speed                          all rows, printed as tables
python -m bench.speed --rows cold,connection   some rows
python -m bench.speed --scale                  how cost grows with the number of services, …
python -m bench.speed --write                  all rows, into results.json and docs/performance.md
python -m bench.speed --scale --write          the same for the scale: scale.json
python -m bench.speed --page                   the page from the committed results
python -m bench.speed --rows cold,idle --against 841874f=PYTHON
                                               compare with another version of ghealth
"""

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterable
from typing import Any

from bench.speed import contenders, report, rows, scale
from tests.support import interrupt


def main() -> int:
    """Run the measurements that the arguments name, or make the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", help="comma-separated; all of them by default")
    parser.add_argument("--rounds", type=int, help="8; 3 for --scale")
    for flag in ("--scale", "--write", "--page"):
        parser.add_argument(flag, action="store_true")
    parser.add_argument("--against", metavar="NAME=PYTHON")
    arguments = parser.parse_args()
    known = scale.SCALES if arguments.scale else rows.ROWS
    names = arguments.rows.split(",") if arguments.rows else known
    if unknown := set(names) - set(known):
        parser.error(f"unknown row {min(unknown)}; expected {', '.join(known)}")
    if arguments.write and arguments.rows:
        parser.error("--write needs all rows, so that the figures of the page are of one run")
    if not arguments.page:
        contenders.build()
        if arguments.against:
            name, python = arguments.against.split("=")
            contenders.others[name] = python
        measured = _measured_scale if arguments.scale else _measured_rows
        rounds = arguments.rounds or (3 if arguments.scale else 8)
        found = {"machine": _machine(), "rounds": rounds} | measured(names, rounds)
        if arguments.write:
            path = report.SCALE if arguments.scale else report.RESULTS
            path.write_text(json.dumps(found, indent=2) + "\n")
    if arguments.page or arguments.write:
        for path, text in report.files().items():
            path.write_text(text)
    return 0


def _measured_rows(names: Iterable[str], rounds: int) -> dict[str, Any]:
    results = {}
    for name in names:
        print(name, file=sys.stderr)
        results[name] = rows.measured(name, rounds)
        print(report.section(name, results[name]), end="\n\n", flush=True)
    print(report.goals(results))
    return {"rows": results}


def _measured_scale(names: Iterable[str], rounds: int) -> dict[str, Any]:
    costs = {}
    for name in names:
        print(name, file=sys.stderr)
        costs[name] = scale.measured(name, rounds)
        print(report.scale_section(name, costs[name]), end="\n\n", flush=True)
    return {"scale": costs}


def _machine() -> dict[str, Any]:
    git = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    commit = subprocess.check_output(git, text=True).strip()
    return {"commit": commit, "cores": os.cpu_count(), "python": platform.python_version()}


if __name__ == "__main__":
    interrupt.run(main)

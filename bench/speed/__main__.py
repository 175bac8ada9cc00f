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
from typing import Any, Final

from bench.speed import contenders, report, rows, scale
from tests.support import interrupt

KINDS: Final[dict[str, tuple[Any, ...]]] = {
    "rows": (rows.ROWS, rows.measured, report.section, report.RESULTS, 8),
    "scale": (scale.SCALES, scale.measured, report.scale_section, report.SCALE, 3),
}
"""What is known, its measurement, its section, where the figures are written, and the rounds."""


def main() -> int:
    """Run the measurements that the arguments name, or make the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", help="comma-separated; all of them by default")
    parser.add_argument("--rounds", type=int, help="8; 3 for --scale")
    for flag in ("--scale", "--write", "--page"):
        parser.add_argument(flag, action="store_true")
    parser.add_argument("--against", action="append", default=[], metavar="NAME=PYTHON")
    arguments = parser.parse_args()
    kind = "scale" if arguments.scale else "rows"
    known, measured, section, path, rounds = KINDS[kind]
    rounds = arguments.rounds or rounds
    names = arguments.rows.split(",") if arguments.rows else known
    if unknown := set(names) - set(known):
        parser.error(f"unknown row {min(unknown)}; expected {', '.join(known)}")
    if arguments.write and arguments.rows:
        parser.error("--write needs all rows, so that the figures of the page are of one run")
    if not arguments.page:
        contenders.build()
        contenders.others.update(other.split("=") for other in arguments.against)
        results: dict[str, Any] = {}
        found = {"machine": _machine(), "rounds": rounds, kind: results}
        for name in names:
            print(name, file=sys.stderr)
            results[name] = measured(name, rounds)
            print(section(name, results[name]), end="\n\n", flush=True)
        if not arguments.scale:
            print(report.goals(results))
        if arguments.write:
            path.write_text(json.dumps(found, indent=2) + "\n")
    if arguments.page or arguments.write:
        for path, text in report.files().items():
            path.write_text(text)
    return 0


def _machine() -> dict[str, Any]:
    git = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    commit = subprocess.check_output(git, text=True).strip()
    return {"commit": commit, "cores": os.cpu_count(), "python": platform.python_version()}


if __name__ == "__main__":
    interrupt.run(main)

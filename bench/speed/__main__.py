"""Measures ghealth beside its peers, prints the table, and writes it with --write."""

import argparse
import json
import platform
import sys
from pathlib import Path

from bench.speed import contenders, report
from bench.speed.rows import ROWS, Row

HERE = Path(__file__).parent
RESULTS = HERE / "results.json"


def main() -> int:
    """Run the rows that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--rows", default="", help="only those that begin with one of these digits")
    parser.add_argument("--write", action="store_true", help="results.json, the page and picture")
    arguments = parser.parse_args()
    contenders.build()
    results: dict[str, Row] = {"machine": {"python": platform.python_version()}}
    for name, measure in ROWS.items():
        if name.startswith(tuple(arguments.rows or "12345678")):
            results[name] = measure(arguments.rounds)
            print(report.table({name: results[name]}), flush=True)
    if arguments.write:
        RESULTS.write_text(json.dumps(results, indent=2) + "\n")
        report.write(results)
    return 0


if __name__ == "__main__":
    sys.exit(main())

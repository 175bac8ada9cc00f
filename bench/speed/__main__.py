"""Measures ghealth beside its peers, and how its cost grows.

python -m bench.speed                          all rows, printed as tables
python -m bench.speed --rows cold,connection   some rows
python -m bench.speed --scale                  how cost grows with the number of services, …
python -m bench.speed --write                  all rows, into results.json and docs/performance.md
python -m bench.speed --scale --write          the same for the scale: scale.json
python -m bench.speed --page                   the page from the committed results
python -m bench.speed --check                  exit code 1 if the page is not that of the results
python -m bench.speed --rows cold,idle --against 841874f=PYTHON
                                               compare with another version of ghealth
"""

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

from bench.speed import contenders, report, rows, scale
from bench.speed.rows import ROWS
from bench.speed.scale import SCALES, Costs

RESULTS: Final = Path(__file__).parent / "results.json"
SCALE: Final = Path(__file__).parent / "scale.json"


def main() -> int:
    """Run the measurements that the arguments name."""
    arguments = _arguments()
    if arguments.page:
        _make_page()
        return 0
    if arguments.check:
        stale = [path.name for path, text in _files().items() if path.read_text() != text]
        for name in stale:
            print(f"{name} is not that of the results: --page makes it", file=sys.stderr)
        return 1 if stale else 0
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    try:
        contenders.build()
        contenders.others.update(dict(arguments.against))
        found = {"machine": _machine(), "rounds": arguments.rounds}
        found |= _scale(arguments) if arguments.scale else _rows(arguments)
    except KeyboardInterrupt:
        print("interrupted: nothing was written", file=sys.stderr)
        return 128 + signal.SIGINT
    if arguments.write:
        path = SCALE if arguments.scale else RESULTS
        path.write_text(json.dumps(found, indent=2) + "\n")
        _make_page()
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", help=f"of {', '.join(ROWS)}; or of the scale")
    parser.add_argument("--rounds", type=int, help="8; 3 for --scale")
    for flag in ("--scale", "--write", "--page", "--check"):
        parser.add_argument(flag, action="store_true")
    parser.add_argument(
        "--against", type=_version, action="append", default=[], metavar="NAME=PYTHON"
    )
    arguments = parser.parse_args()
    known = SCALES if arguments.scale else ROWS
    rows = (arguments.rows or ",".join(known)).split(",")
    if unknown := set(rows) - set(known):
        parser.error(f"unknown row {min(unknown)}; expected {', '.join(known)}")
    if arguments.write and arguments.rows:
        parser.error("--write needs all rows, so that the figures of the page are of one run")
    if arguments.scale and arguments.against:
        parser.error("--against is for rows only")
    arguments.rows = [name for name in known if name in rows]
    arguments.rounds = arguments.rounds or (3 if arguments.scale else 8)
    return arguments


def _version(text: str) -> tuple[str, str]:
    name, _, python = text.rpartition("=")
    if not os.access(python, os.X_OK):
        raise argparse.ArgumentTypeError(f"{python} is not an interpreter")
    return name or "other", str(Path(python).absolute())


def _rows(arguments: argparse.Namespace) -> dict[str, Any]:
    results: report.Results = {}
    for number, name in enumerate(arguments.rows, 1):
        print(f"row {number} of {len(arguments.rows)}: {name}", file=sys.stderr)
        results[name] = {
            kind: rows.measured(name, kind, arguments.rounds) for kind in ROWS[name].gateways
        }
        print(report.tables({name: results[name]}), end="\n\n", flush=True)
    print(report.goals(results, contenders.others))
    return {"rows": results}


def _scale(arguments: argparse.Namespace) -> dict[str, Any]:
    costs: dict[str, Costs] = {}
    for number, name in enumerate(arguments.rows, 1):
        print(f"table {number} of {len(arguments.rows)}: {name}", file=sys.stderr)
        costs[name] = scale.measured(name, arguments.rounds)
        print(report.scale_table(name, costs[name]), end="\n\n", flush=True)
    return {"scale": costs}


def _machine() -> dict[str, Any]:
    git = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    commit = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    return {"commit": commit, "cores": os.cpu_count(), "python": platform.python_version()}


def _make_page() -> None:
    for path, text in _files().items():
        path.write_text(text)


def _files() -> dict[Path, str]:
    """Return the page and the picture as the committed results make them."""
    costs = {
        name: {int(number): figures for number, figures in one.items()}
        for name, one in json.loads(SCALE.read_text())["scale"].items()
    }
    return report.files(json.loads(RESULTS.read_text()), costs)


if __name__ == "__main__":
    sys.exit(main())

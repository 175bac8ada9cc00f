"""Measures ghealth beside its peers, and how its cost grows.

python -m bench.speed                          all rows, printed as tables
python -m bench.speed --rows cold,connection   some rows
python -m bench.speed --scale                  how cost grows with the number of services, …
python -m bench.speed --write                  all rows, into results.json and docs/performance.md
python -m bench.speed --scale --write          the same for the scale: scale.json
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
    if arguments.check:
        stale = [
            path for path, text in _files().items() if not path.exists() or path.read_text() != text
        ]
        for path in stale:
            print(f"{path.name} is not that of the results", file=sys.stderr)
        return 1 if stale else 0
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    try:
        contenders.build()
        contenders.others.update(dict(arguments.against))
        if arguments.scale:
            _write(SCALE, _scale(arguments), write=arguments.write)
        else:
            _write(RESULTS, _rows(arguments), write=arguments.write)
    except KeyboardInterrupt:
        print("interrupted: nothing was written", file=sys.stderr)
        return 128 + signal.SIGINT
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=_names, help=f"of {', '.join(ROWS)}; or of the scale")
    parser.add_argument("--rounds", type=int, help="8; 3 for --scale")
    parser.add_argument("--scale", action="store_true")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--check", action="store_true")
    parser.add_argument(
        "--against", type=_version, action="append", default=[], metavar="NAME=PYTHON"
    )
    arguments = parser.parse_args()
    known = SCALES if arguments.scale else ROWS
    unknown = set(arguments.rows or ()) - set(known)
    if unknown:
        parser.error(f"unknown row {min(unknown)}; expected {', '.join(known)}")
    if arguments.write and arguments.rows:
        parser.error("--write needs all rows, so that the figures of the page are of one run")
    if arguments.scale and arguments.against:
        parser.error("--against is for rows only")
    arguments.rows = [name for name in known if name in (arguments.rows or known)]
    arguments.rounds = arguments.rounds or (3 if arguments.scale else 8)
    return arguments


def _names(text: str) -> list[str]:
    return text.split(",")


def _version(text: str) -> tuple[str, str]:
    name, _, python = text.rpartition("=")
    if not os.access(python, os.X_OK):
        raise argparse.ArgumentTypeError(f"{python} is not an interpreter")
    return name or "other", str(Path(python).absolute())


def _rows(arguments: argparse.Namespace) -> dict[str, Any]:
    results: report.Results = {}
    for number, name in enumerate(arguments.rows, 1):
        print(f"row {number} of {len(arguments.rows)}: {name}", file=sys.stderr)
        results[name] = {}
        for kind in ROWS[name].gateways:
            results[name][kind] = rows.measured(name, kind, arguments.rounds)
        print(report.tables({name: results[name]}), end="\n\n", flush=True)
    print(report.goals(results))
    return {"machine": _machine(), "rounds": arguments.rounds, "rows": results}


def _scale(arguments: argparse.Namespace) -> dict[str, Any]:
    costs: dict[str, Costs] = {}
    for number, name in enumerate(arguments.rows, 1):
        print(f"table {number} of {len(arguments.rows)}: {name}", file=sys.stderr)
        costs[name] = scale.measured(name, arguments.rounds)
        print(report.scale_table(name, costs[name]), end="\n\n", flush=True)
    return {"machine": _machine(), "rounds": arguments.rounds, "scale": costs}


def _machine() -> dict[str, Any]:
    git = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    commit = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    return {"commit": commit, "cores": os.cpu_count(), "python": platform.python_version()}


def _write(path: Path, found: dict[str, Any], *, write: bool) -> None:
    if write:
        path.write_text(json.dumps(found, indent=2) + "\n")
        for file, text in _files().items():
            file.write_text(text)


def _files() -> dict[Path, str]:
    """Return the page and the picture as the committed results make them."""
    results = json.loads(RESULTS.read_text())
    costs = json.loads(SCALE.read_text())["scale"] if SCALE.exists() else {}
    return report.files(
        results,
        {
            name: {int(number): figures for number, figures in one.items()}
            for name, one in costs.items()
        },
    )


if __name__ == "__main__":
    sys.exit(main())

"""Compares this machine with results.json: ratios in wide bands, counts exactly.

python -m bench.speed.check             the ratios and the counts
python -m bench.speed.check --counts    only the counts: they do not depend on the machine
"""

import argparse
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from bench.speed import contenders, figures, loads, rows
from bench.speed.contenders import BARE, FLOOR, GHEALTH, running
from bench.speed.figures import RATIOS
from bench.speed.gateways import ALONE, gateway

RESULTS: Final = Path(__file__).parent / "results.json"

BAND: Final = 1.5
"""A ratio may be worse than the committed one by this factor: machines differ, and are noisy."""

COMPARED: Final = (
    # The row, the peer, the figure, and whether more is worse.
    ("connection", FLOOR, "median ms", True),
    ("start", BARE, "ms", True),
    ("ten", FLOOR, "CPU ms a check", True),
    ("storm", FLOOR, "checks a second", False),
)
_CALLERS, _ROUNDS = 20, 3

_MODULES: Final = (
    "import ghealth.cli, ghealth.server.serve, sys;"
    "tops = [name.partition('.')[0] for name in sys.modules];"
    "print(sum(top not in {*sys.stdlib_module_names, 'ghealth', '__main__'} for top in tops))"
)


def counts() -> dict[str, int]:
    """Count values of a version of ghealth that do not depend on the machine."""
    command = [contenders.PYTHON, "-I", "-c", _MODULES]
    modules = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    with gateway(ALONE) as envoy, running(GHEALTH, envoy.url, CACHE_TTL="60") as contender:
        loads.storm(contender.port, 1000)
        probes = envoy.requests()
    with gateway(ALONE) as envoy, running(GHEALTH, envoy.url, CACHE_TTL="0") as other:
        envoy.delay(0.5)
        before = envoy.requests()
        with ThreadPoolExecutor(_CALLERS) as pool:
            list(pool.map(loads.check, [other.port] * _CALLERS))
        shared = envoy.requests() - before
        threads, descriptors = (
            len(figures.threads(other.pid)),
            len(list(Path(f"/proc/{other.pid}/fd").iterdir())),
        )
    return {
        "probes for 1,000 checks while a result is fresh": probes,
        f"probes for {_CALLERS} simultaneous checks, at most": 1 + (shared > 1),
        "threads": threads,
        "descriptors": descriptors,
        "modules of other packages imported to serve": int(modules),
    }


def regressions(committed: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Return the figures that are worse than the committed results, one line each.

    Args:
        committed: The content of results.json.
        now: The same, measured now; rows may be missing.
    """
    lines = [
        f"{name}: {now['counts'].get(name)}, committed is {count}"
        for name, count in committed["counts"].items()
        if now["counts"].get(name) != count
    ]
    for row, peer, figure, more_is_worse in COMPARED:
        if row not in now["rows"]:
            continue
        was, is_ = (all_["rows"][row][ALONE][RATIOS][peer][figure] for all_ in (committed, now))
        if (is_ / was if more_is_worse else was / is_) > BAND:
            lines.append(f"{row}, {figure} beside {peer}: {is_:.2f}, committed is {was:.2f}")
    return lines


def main() -> int:
    """Measure and compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--counts", action="store_true")
    arguments = parser.parse_args()
    now: dict[str, Any] = {"counts": counts(), "rows": {}}
    if not arguments.counts:
        contenders.build()
        for row, *_ in COMPARED:
            now["rows"][row] = {ALONE: rows.measured(row, ALONE, _ROUNDS)}
    print(json.dumps(now["counts"], indent=2))
    lines = regressions(json.loads(RESULTS.read_text()), now)
    for line in lines:
        print(f"worse: {line}", file=sys.stderr)
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())

"""Compares this machine with bench/speed/baseline.json: ratios in wide bands, counts exactly.

python -m bench.speed.check             the ratios and the counts
python -m bench.speed.check --counts    the counts alone: they do not depend on the machine
python -m bench.speed.check --write     make bench/speed/baseline.json anew
"""

import argparse
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from bench.speed import contenders, loads, reading, rows
from bench.speed.contenders import GHEALTH, running
from tests.support.gateway import gateway

BASELINE: Final = Path(__file__).parent / "baseline.json"

BAND: Final = 1.5
"""A ratio may be worse than the baseline's by this factor: machines differ, and are noisy."""

RATIOS: Final = (
    # The row, beside whom, the figure, and whether more is worse.
    ("1 storm", contenders.FLOOR, "checks a second", False),
    ("2 a new connection a check", contenders.GO, "median ms", True),
    ("6 start", "bare imports", "ms", True),
    ("7 ten checks a second", contenders.FLOOR, "CPU ms a check", True),
)
_CALLERS, _ROUNDS = 20, 3

_MODULES: Final = (
    "import ghealth.cli, ghealth.server, sys;"
    "tops = [name.partition('.')[0] for name in sys.modules];"
    "print(sum(top not in {*sys.stdlib_module_names, 'ghealth', '__main__'} for top in tops))"
)


def counts() -> dict[str, int]:
    """Count what one version of ghealth and of its packages does alike on every machine."""
    command = [contenders.PYTHON, "-c", _MODULES]
    modules = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    with gateway() as (envoy, agent), running(GHEALTH, envoy.url, CACHE_TTL="60") as contender:
        loads.storm(contender.port, 1000)
        attempts = agent.asked
    with gateway() as (envoy, agent), running(GHEALTH, envoy.url, CACHE_TTL="0") as other:
        agent.delay, before = 0.5, agent.asked
        with ThreadPoolExecutor(_CALLERS) as pool:
            list(pool.map(loads.check, [other.port] * _CALLERS))
        shared = agent.asked - before
        threads, descriptors = reading.threads(other.pid), reading.descriptors(other.pid)
    return {
        "attempts for 1,000 checks while an answer is fresh": attempts,
        f"attempts for {_CALLERS} callers of one moment, at most": 1 + (shared > 1),
        "threads": threads,
        "descriptors": descriptors,
        "modules of other packages imported to serve": int(modules),
    }


def ratios() -> dict[str, float]:
    """Measure the ratios that the baseline has."""
    found = {}
    for row, beside, figure, _ in RATIOS:
        measured: Any = rows.ROWS[row](_ROUNDS)
        found[f"{row}: {figure} beside {beside}"] = measured["ratios"][beside][figure]
    return found


def regressions(baseline: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Tell what is worse than the baseline, a line each.

    Args:
        baseline: What bench/speed/baseline.json has.
        now: The same, measured now; ratios may be missing.
    """
    lines = [
        f"{name}: {now['counts'].get(name)}, the baseline has {count}"
        for name, count in baseline["counts"].items()
        if now["counts"].get(name) != count
    ]
    for row, beside, figure, more_is_worse in RATIOS:
        name = f"{row}: {figure} beside {beside}"
        if name not in now.get("ratios", {}):
            continue
        was, is_ = baseline["ratios"][name], now["ratios"][name]
        worse = is_ / was if more_is_worse else was / is_
        if worse > BAND:
            lines.append(f"{name}: {is_:.2f}, the baseline has {was:.2f}")
    return lines


def main() -> int:
    """Compare, or write the baseline."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--counts", action="store_true")
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    now: dict[str, Any] = {"counts": counts()}
    if not arguments.counts:
        contenders.build()
        now["ratios"] = ratios()
    print(json.dumps(now, indent=2, ensure_ascii=False))
    if arguments.write:
        BASELINE.write_text(json.dumps(now, indent=2, ensure_ascii=False) + "\n")
        return 0
    lines = regressions(json.loads(BASELINE.read_text()), now)
    for line in lines:
        print(f"worse: {line}", file=sys.stderr)
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())

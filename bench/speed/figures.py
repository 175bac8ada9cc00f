"""Figures: memory, CPU and wake-ups of a process; alternating rounds, medians, ratios, growth."""

import math
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

Found = dict[str, dict[str, list[float]]]
"""The figures of each contender, a value for each round."""

Row = dict[str, Any]
"""Medians by contender and figure; `ratios` has the ratios to the others in the same form."""

RATIOS: Final = "ratios"

_POINTS: Final = 2  # of a line


def status(pid: int, name: str) -> int:
    """Return a number from the `status` of a process or a thread, such as VmRSS in KiB."""
    (found,) = re.findall(
        rf"^{name}:\s+(\d+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE
    )
    return int(found)


def resident(pid: int) -> float:
    """Return the resident memory of a process in MiB."""
    return status(pid, "VmRSS") / 1024


def threads(pid: int) -> list[int]:
    """Return the numbers of a process's threads."""
    return [int(task.name) for task in Path(f"/proc/{pid}/task").iterdir()]


def wake_ups(pid: int) -> int:
    """Return how often the threads of a process have slept and woken again."""
    return sum(status(thread, "voluntary_ctxt_switches") for thread in threads(pid))


def cpu(pid: int) -> float:
    """Return the seconds of CPU that the threads of a process have used, to the nanosecond."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


def by_turns(
    names: Sequence[str], rounds: Iterable[int], measure: Callable[[str], dict[str, float]]
) -> Found:
    """Measure each contender once in each round, every second round in reverse order.

    Args:
        names: The contenders.
        rounds: Their numbers; round 0 warms up and does not count.
        measure: Measures one contender once.
    """
    found: Found = {name: {} for name in names}
    for number in rounds:
        for name in names if number % 2 else reversed(names):
            for figure, value in measure(name).items():
                if number:
                    found[name].setdefault(figure, []).append(value)
    return found


def medians(found: Found, subject: str) -> Row:
    """Reduce rounds to medians, and to medians of the ratios within each round.

    Args:
        found: The figures of each contender, round by round; an infinite median becomes None.
        subject: The contender whose figures are divided by those of each other one.
    """
    row: Row = {
        name: {figure: _finite(statistics.median(values)) for figure, values in figures.items()}
        for name, figures in found.items()
    }
    row[RATIOS] = {
        name: {
            figure: statistics.median(
                ours / theirs for ours, theirs in zip(found[subject][figure], values, strict=True)
            )
            for figure, values in figures.items()
            if figure in found[subject] and all(values) and max(values) < math.inf
        }
        for name, figures in found.items()
        if name != subject
    }
    return row


def _finite(value: float) -> float | None:
    return None if math.isinf(value) else value


def percentile(values: Iterable[float], percent: int) -> float:
    """Return the value that `percent` of all values do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def growth(costs: Mapping[int, float]) -> float:
    """Return the exponent of the last step of a cost: 1 is linear, 2 is quadratic.

    Args:
        costs: Cost by number, less the cost of none. What is not above 0 is noise and left out.
    """
    points = sorted((number, cost) for number, cost in costs.items() if cost > 0)
    if len(points) < _POINTS:
        return 0.0
    (x1, y1), (x2, y2) = points[-2:]
    return math.log(y2 / y1) / math.log(x2 / x1)


def progress(title: str, rounds: int, *, warm_up: bool) -> Iterator[int]:
    """Yield the numbers of rounds, and report on stderr how far a measurement is.

    Args:
        title: The name of the measurement.
        rounds: The rounds that count.
        warm_up: Whether round 0, which does not count, comes first.
    """
    first, begin = 1 - warm_up, time.monotonic()
    for number in range(first, rounds + 1):
        done = number - first
        left = (time.monotonic() - begin) / done * (rounds + 1 - number) if done else None
        ahead = "" if left is None else f", about {left:.0f} s left"
        print(f"{title}: round {number} of {rounds}{ahead}", file=sys.stderr, flush=True)
        yield number

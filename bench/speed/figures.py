"""Figures: memory, CPU and wake-ups of a process; alternating rounds, medians, ratios, growth."""

import math
import statistics
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from operator import truediv
from pathlib import Path
from typing import Any, Final

Found = dict[str, dict[str, list[float]]]
"""The figures of each contender or number, a value for each round."""

Medians = dict[str, dict[str, float]]
"""The figures of each contender or number."""

Row = dict[str, Any]
"""Medians by contender; `ratios` has the ratios to the others in the same form."""

RATIOS: Final = "ratios"


def resident(pid: int) -> float:
    """Return the resident memory of a process in MiB."""
    return _status(Path(f"/proc/{pid}"), "VmRSS") / 1024


def wake_ups(pid: int) -> int:
    """Return how often the threads of a process have slept and woken again."""
    return sum(_status(task, "voluntary_ctxt_switches") for task in _tasks(pid))


def cpu(pid: int) -> float:
    """Return the seconds of CPU that the threads of a process have used, to the nanosecond."""
    return sum(int((task / "schedstat").read_text().split()[0]) for task in _tasks(pid)) / 1e9


def _tasks(pid: int) -> Iterator[Path]:
    return Path(f"/proc/{pid}/task").iterdir()


def _status(task: Path, name: str) -> int:
    fields = dict(line.split(":", 1) for line in (task / "status").read_text().splitlines())
    return int(fields[name].split()[0])


def by_turns(
    names: Sequence[str], rounds: Iterable[int], measure: Callable[[str], dict[str, float]]
) -> Found:
    """Measure each contender or number once in each round, every second round in reverse order.

    Args:
        names: The contenders or numbers.
        rounds: The numbers of the rounds; round 0 warms up and does not count.
        measure: Measures one of them once.
    """
    found: Found = {name: {} for name in names}
    for number in rounds:
        print(f"  round {number}", file=sys.stderr, flush=True)
        for name in names if number % 2 else reversed(names):
            for figure, value in measure(name).items():
                if number:
                    found[name].setdefault(figure, []).append(value)
    return found


def medians(found: Found) -> Medians:
    """Return the median of each figure."""
    return {
        name: {figure: statistics.median(values) for figure, values in figures.items()}
        for name, figures in found.items()
    }


def ratios(found: Found, subject: str) -> Medians:
    """Return the medians of the ratios within each round.

    Args:
        found: The figures of each contender; there is no ratio to a figure that is 0.
        subject: The contender whose figures are divided by those of each other one.
    """
    return {
        name: {
            figure: statistics.median(map(truediv, found[subject][figure], values))
            for figure, values in figures.items()
            if figure in found[subject] and all(values)
        }
        for name, figures in found.items()
        if name != subject
    }


def percentile(values: Sequence[float], percent: int) -> float:
    """Return the value that `percent` of all values do not exceed."""
    return sorted(values)[math.ceil(len(values) * percent / 100) - 1]


def exponent(costs: Mapping[str, Mapping[str, float]], figure: str) -> float:
    """Return the exponent of the last step of a cost: 1 is linear, 2 is quadratic.

    Args:
        costs: Figures by number; those of 0 are the cost of none. A number that costs no more than
            none is noise and left out.
        figure: The cost.
    """
    added = [(int(number), found[figure] - costs["0"][figure]) for number, found in costs.items()]
    match [(number, cost) for number, cost in added if cost > 0]:
        case [*_, (x1, y1), (x2, y2)]:
            return math.log(y2 / y1) / math.log(x2 / x1)
    return 0.0

"""The generated parts of docs/performance.md: tables, the goals, the picture."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from bench import pages
from bench.speed import plots
from bench.speed.contenders import BARE, CAREFUL, FLOOR, GHEALTH, SIMPLE, STOCK
from bench.speed.figures import RATIOS, Medians, Row, exponent
from bench.speed.gateways import ALONE, ROOT
from bench.speed.plots import shown
from bench.speed.rows import CHECK_ADDR, CHECK_ALONE, CHECK_TLS, ROWS
from bench.speed.scale import SCALES

GROWTH: Final = "MiB more"
"""Prefix of figures that may be 0 or less, for which ratios have no meaning."""

LINEAR: Final = 1.1
"""Exponents up to this count as linear: it is 26 % more than linear for ten times the number, and
the figures of two rounds differ by as much."""

Results = Mapping[str, Mapping[str, Row]]
"""By row and kind of gateway."""

RESULTS: Final = Path(__file__).parent / "results.json"
SCALE: Final = Path(__file__).parent / "scale.json"
PAGE: Final = ROOT / "docs" / "performance.md"
PICTURE: Final = ROOT / "docs" / "performance.svg"


class Goal(NamedTuple):
    """A goal of the project.

    Args:
        text: What is limited.
        row: The row that measures it.
        figure: The figure.
        limit: Its limit.
        beside: The contender by whose figure it is divided; None: the figure itself counts.
        over: The contender whose figure is subtracted.
        least: Whether the limit is a minimum instead of a maximum.
        whose: The contender that the goal is for.
    """

    text: str
    row: str
    figure: str
    limit: float
    beside: str | None = None
    over: str | None = None
    least: bool = False
    whose: str = GHEALTH

    def worst(self, by_gateway: Mapping[str, Row]) -> float:
        """Return the value with the gateway that is worst for ghealth."""
        values: list[float] = []
        for row in by_gateway.values():
            own = row[RATIOS][self.beside] if self.beside else row[self.whose]
            values.append(own[self.figure] - (row[self.over][self.figure] if self.over else 0.0))
        return min(values) if self.least else max(values)

    def met(self, value: float) -> bool:
        """Return whether a value is within the limit."""
        return value >= self.limit if self.least else value <= self.limit


GOALS: Final = (
    Goal("Check without a fresh result, ms", "cold", "median ms", 1.7, over=FLOOR),
    Goal("Check with a fresh result, median", "connection", "median ms", 1.15, FLOOR),
    Goal("The same, p99", "connection", "p99 ms", 1.3, FLOOR),
    Goal("Ten checks a second, CPU", "ten", "CPU ms a check", 1.3, FLOOR),
    Goal("No caller, CPU ms a second", "idle", "CPU ms a second", 1.0),
    Goal("No caller, wake-ups a second", "idle", "wake-ups a second", 14),
    Goal(f"`{CHECK_ADDR}`, ms", "command", "ms", 90, whose=CHECK_ADDR),
    Goal(f"`{CHECK_ADDR}`, MiB", "command", "MiB", 25, whose=CHECK_ADDR),
    Goal(f"`{CHECK_ALONE}`, ms", "command", "ms", 90, whose=CHECK_ALONE),
    Goal(f"`{CHECK_ALONE}`, MiB", "command", "MiB", 25, whose=CHECK_ALONE),
    Goal(f"`{CHECK_TLS}`, ms", "command", "ms", 120, whose=CHECK_TLS),
    Goal(f"`{CHECK_TLS}`, MiB", "command", "MiB", 25, whose=CHECK_TLS),
    Goal("Resident MiB at the start", "memory", "resident MiB", 59),
    Goal("MiB more after 100,000 checks", "memory", "MiB more after 100,000 checks", 1),
    Goal("Resident MiB after all loads", "memory", "resident MiB at the end", 64),
    Goal("Start", "start", "ms", 1.15, BARE),
    Goal("A storm, checks a second", "storm", "checks a second", 0.55, SIMPLE, least=True),
)


def goals(results: Results) -> str:
    """Return the table of the goals of the rows that were measured."""
    rows = []
    for goal in GOALS:
        if goal.row in results:
            value = goal.worst(results[goal.row])
            limit = f"{'≥' if goal.least else '≤'} {shown(goal.limit)}"
            limit += f" of the {goal.beside}" if goal.beside else ""
            limit += f" more than the {goal.over}" if goal.over else ""
            verdict = "met" if goal.met(value) else "**missed**"
            rows.append((goal.text, limit, shown(value), verdict))
    return pages.table(("", "goal", "measured", ""), rows)


def table(row: Row) -> str:
    """Return the table of one row with one kind of gateway."""
    figures = list(next(iter(row.values())))
    rows = []
    for name, found in row.items():
        if name != RATIOS:
            ratios = row[RATIOS].get(name, {})
            cells = [
                f"{shown(found[figure])} ({ratios[figure]:.2f})"
                if figure in ratios and not figure.startswith(GROWTH)
                else shown(found[figure])
                for figure in figures
            ]
            rows.append((name, *cells))
    return pages.table(("", *figures), rows)


def section(name: str, by_gateway: Mapping[str, Row]) -> str:
    """Return the section of one row."""
    tables = [f"{kind}:\n\n{table(row)}" for kind, row in by_gateway.items()]
    return "\n\n".join([f"### {ROWS[name].title}", *tables])


_NODES, _INTERVAL, _KUBELET = 6, 10, 0.1


def fleet(results: Results) -> str:
    """Return the table of what many pods need."""
    per_check = max(row[GHEALTH]["CPU ms a check"] for row in results["ten"].values())
    per_second = results["idle"][ALONE][GHEALTH]["CPU ms a second"]
    memory = results["memory"][ALONE][GHEALTH]["resident MiB"]
    rows = []
    for pods in (10, 1000):
        checks = pods * (_NODES / _INTERVAL + _KUBELET)
        cores = (checks * per_check + pods * per_second) / 1e3
        rows.append((f"{pods:,}", f"{checks:,.0f}", f"{cores:.2g}", shown(pods * memory / 1024)))
    head = ("pods", "checks a second", "CPU, cores in all", "resident GiB in all")
    return pages.table(head, rows)


def scale_section(name: str, costs: Medians) -> str:
    """Return the section of one thing whose number grows."""
    figures = list(costs["0"])
    rows = [[f"{int(number):,}", *map(shown, found.values())] for number, found in costs.items()]
    exponents = [exponent(costs, figure) for figure in figures]
    cells = [f"{e:.2f}" + ("" if e <= LINEAR else " **missed**") for e in exponents]
    made = pages.table(("number", *figures), [*rows, ["*exponent of the last step*", *cells]])
    return f"### {SCALES[name].title}\n\n{made}"


_PICTURED: Final = (
    ("cold", "median ms", "A check that finds no fresh result, median ms"),
    ("connection", "median ms", "A check that finds a fresh result, median ms"),
    ("slow", "median ms", "The gateway takes 20 ms, median ms"),
    ("ten", "CPU ms a check", "Ten checks a second, CPU ms a check"),
    ("memory", "resident MiB", "Resident MiB"),
)
_BARS: Final = (GHEALTH, CAREFUL, SIMPLE, STOCK, FLOOR)


def picture(results: Results) -> str:
    """Draw each contender's bar for what an ALB does; shorter is better in all of them."""
    groups = {}
    for name, figure, title in _PICTURED:
        row = results[name][ALONE]
        groups[title] = {one: row[one][figure] for one in _BARS if one in row}
    return plots.bars(groups)


def files() -> dict[Path, str]:
    """Return the page and the picture as the committed results make them."""
    found: dict[str, Any] = json.loads(RESULTS.read_text())
    scales = json.loads(SCALE.read_text())["scale"]
    machine, results = found["machine"], found["rows"]
    taken = (
        f"Commit {machine['commit']}, {found['rounds']} rounds on {machine['cores']} cores with "
        f"Python {machine['python']}."
    )
    parts = {
        "goals": f"{taken}\n\n{goals(results)}",
        "results": "\n\n".join(section(name, row) for name, row in results.items()),
        "fleet": fleet(results),
        "scale": "\n\n".join(scale_section(name, costs) for name, costs in scales.items()),
    }
    page = pages.filled(PAGE.read_text(), "make bench", parts)
    return {PAGE: page, PICTURE: picture(results)}

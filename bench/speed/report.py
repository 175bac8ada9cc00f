"""The generated parts of docs/performance.md: tables, the goals, the pictures."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bench.speed import plots, scale
from bench.speed.contenders import BARE, CAREFUL, FLOOR, GHEALTH, SIMPLE, STOCK
from bench.speed.figures import RATIOS, Row
from bench.speed.gateways import ALONE, ROOT
from bench.speed.plots import shown
from bench.speed.rows import PROBE_TIMEOUT, ROWS
from bench.speed.scale import SCALES, Costs

GROWTH: Final = "MiB more"
"""Prefix of figures that may be 0 or less, for which ratios have no meaning."""

Results = dict[str, dict[str, Row]]
"""By row and kind of gateway."""

DOCS: Final = ROOT / "docs"
PAGE: Final = DOCS / "performance.md"
PICTURE: Final = DOCS / "performance.svg"
_BEGIN: Final = "<!-- {}: made by `make bench` -->"
_END: Final = "<!-- end of {} -->"


@dataclass(frozen=True, slots=True)
class Goal:
    """A goal of the project.

    Args:
        text: What is limited.
        row: The row that measures it.
        figure: The figure of ghealth.
        limit: Its limit.
        beside: The contender by whose figure it is divided; None: the figure itself counts.
        least: Whether the limit is a minimum instead of a maximum.
    """

    text: str
    row: str
    figure: str
    limit: float
    beside: str | None = None
    least: bool = False

    def worst(self, results: Results) -> float | None:
        """Return the value with the gateway that is worst for ghealth; None if not measured."""
        values = []
        for row in results.get(self.row, {}).values():
            figures = row[RATIOS].get(self.beside, {}) if self.beside else row[GHEALTH]
            if self.figure in figures:
                values.append(figures[self.figure])
        if not values:
            return None
        return float(min(values) if self.least else max(values))

    def met(self, value: float) -> bool:
        """Return whether a value is within the limit."""
        return value >= self.limit if self.least else value <= self.limit


GOALS: Final = (
    Goal("New connection, median", "connection", "median ms", 0.95, CAREFUL),
    Goal("New connection, p99", "connection", "p99 ms", 1.0, CAREFUL),
    Goal(
        "Gateway takes 20 ms, checks a second", "slow", "checks a second", 2.0, CAREFUL, least=True
    ),
    Goal(
        "The same, 40 checks at a time",
        "slow",
        "checks a second, 40 at a time",
        2.0,
        CAREFUL,
        least=True,
    ),
    Goal(
        "Gateway hangs, ms to the answer (PROBE_TIMEOUT + 50 ms)",
        "hang",
        "answered after ms",
        PROBE_TIMEOUT * 1e3 + 50,
    ),
    Goal(
        "Probes a second, checks one by one", "requests", "requests a second, checks one by one", 1
    ),
    Goal("Probes a second, a storm", "requests", "requests a second, a storm", 1),
    Goal("Probes a second, a slow storm", "requests", "requests a second, a slow storm", 1),
    Goal("Resident MiB at the end of all loads", "memory", "resident MiB at the end", 64),
    Goal("MiB more after 100,000 checks", "memory", "MiB more after 100,000 checks", 1),
    Goal(
        "MiB more after 10,000 clients that left",
        "memory",
        "MiB more after 10,000 clients that left",
        1,
    ),
    Goal(
        "The same, as fast as they can",
        "memory",
        "MiB more after 10,000 clients that left in a flood",
        1,
    ),
    Goal("Start", "start", "ms", 1.15, BARE),
    Goal("Ten checks a second, CPU", "ten", "CPU ms a check", 1.2, FLOOR),
)


def goals(results: Results) -> str:
    """Return the table of the goals that were measured."""
    lines = ["| | limit | measured | |", "|---|---|---|---|"]
    for goal in GOALS:
        value = goal.worst(results)
        if value is not None:
            sign = "≥" if goal.least else "≤"
            limit = f"{sign} {shown(goal.limit)}"
            if goal.beside:
                limit += f" of the {goal.beside}"
            verdict = "met" if goal.met(value) else "**missed**"
            lines.append(f"| {goal.text} | {limit} | {shown(value)} | {verdict} |")
    return "\n".join(lines)


def table(row: Row) -> str:
    """Return the table of one row with one kind of gateway."""
    names = [name for name in row if name != RATIOS]
    figures = list(dict.fromkeys(figure for name in names for figure in row[name]))
    lines = [f"| | {' | '.join(figures)} |", "|---|" + "---|" * len(figures)]
    for name in names:
        ratios = row[RATIOS].get(name, {})
        cells = []
        for figure in figures:
            cell = shown(row[name][figure]) if figure in row[name] else ""
            divided = figure in ratios and not figure.startswith(GROWTH)
            cells.append(f"{cell} ({ratios[figure]:.2f})" if divided else cell)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def tables(results: Results) -> str:
    """Return a section for each row."""
    parts = []
    for name, by_gateway in results.items():
        parts.append(f"### {ROWS[name].title}")
        for kind, row in by_gateway.items():
            parts += [f"{kind}:", table(row)]
    return "\n\n".join(parts)


_NODES, _INTERVAL, _KUBELET = 6, 10, 0.1


def fleet(results: Results) -> str:
    """Return the table of what many pods need; empty if a row that it needs was not measured."""
    if not {"ten", "idle", "memory"} <= results.keys():
        return ""
    per_check = max(row[GHEALTH]["CPU ms a check"] for row in results["ten"].values())
    per_second = results["idle"][ALONE][GHEALTH]["CPU ms a second"]
    memory = results["memory"][ALONE][GHEALTH]
    lines = ["| pods | checks a second | CPU, cores in all | resident in all | of it anonymous |"]
    lines.append("|---|---|---|---|---|")
    for pods in (10, 1000):
        checks = pods * (_NODES / _INTERVAL + _KUBELET)
        cores = (checks * per_check + pods * per_second) / 1e3
        resident, anonymous = (memory[f"{kind} MiB"] * pods for kind in ("resident", "anonymous"))
        lines.append(
            f"| {pods:,} | {checks:,.0f} | {cores:.2g} | {_size(resident)} | {_size(anonymous)} |"
        )
    return "\n".join(lines)


def _size(mib: float) -> str:
    return f"{mib:,.0f} MiB" if mib < 10_000 else f"{mib / 1024:,.0f} GiB"


def scale_table(name: str, costs: Costs) -> str:
    """Return the table of one thing whose number grows."""
    figures = list(costs[0])
    lines = [f"| number | {' | '.join(figures)} |", "|---|" + "---|" * len(figures)]
    for number, found in costs.items():
        lines.append(f"| {number:,} | {' | '.join(shown(found[f]) for f in figures)} |")
    exponents = [scale.exponent(costs, f) for f in figures]
    cells = [f"{e:.2f}" + ("" if e <= scale.LINEAR else " **missed**") for e in exponents]
    lines.append(f"| *exponent of the last step* | {' | '.join(cells)} |")
    title = SCALES[name].title
    return "\n\n".join([f"### {title}", "\n".join(lines), f"![{title}](scale-{name}.svg)"])


def scale_pictures(costs: Mapping[str, Costs]) -> dict[Path, str]:
    """Return the plots by file."""
    return {
        DOCS / f"scale-{name}.svg": plots.curves(
            SCALES[name].title,
            {figure: scale.added(one, figure) for figure in SCALES[name].plotted},
        )
        for name, one in costs.items()
    }


_PICTURED: Final = (
    ("connection", "p99 ms", "New connection, p99 ms"),
    ("slow", "median ms", "Gateway takes 20 ms, median ms"),
    ("requests", "requests a second, a slow storm", "Requests a second at a slow gateway"),
    ("memory", "resident MiB", "Resident MiB"),
    ("ten", "CPU ms a check", "Ten checks a second, CPU ms a check"),
)
_BARS: Final = (GHEALTH, CAREFUL, SIMPLE, STOCK, FLOOR)


def picture(results: Results) -> str:
    """Draw each contender's bar for what an ALB does; shorter is better in all of them."""
    groups = {}
    for name, figure, title in _PICTURED:
        row = results.get(name, {}).get(ALONE, {})
        group = {one: row[one][figure] for one in _BARS if figure in row.get(one, {})}
        if group:
            groups[title] = group
    return plots.bars(groups)


def page(text: str, taken: str, results: Results, costs: Mapping[str, Costs]) -> str:
    """Return the page with its generated parts filled in.

    Args:
        text: The page.
        taken: How the results were taken.
        results: The rows.
        costs: The costs by number.
    """
    parts = {
        "goals": f"{taken}\n\n{goals(results)}",
        "results": tables(results),
        "fleet": fleet(results),
        "scale": "\n\n".join(scale_table(name, one) for name, one in costs.items()),
    }
    for name, made in parts.items():
        begin, end = _BEGIN.format(name), _END.format(name)
        before, _, rest = text.partition(begin)
        text = f"{before}{begin}\n{made}\n{end}{rest.partition(end)[2]}"
    return text


def files(found: Mapping[str, Any], costs: Mapping[str, Costs]) -> dict[Path, str]:
    """Return the page and the pictures by file.

    Args:
        found: The content of results.json.
        costs: The costs by number.
    """
    machine, results = found["machine"], found["rows"]
    rounds = "1 round" if found["rounds"] == 1 else f"{found['rounds']} rounds"
    taken = f"Taken in {rounds} on {machine['cores']} cores with Python {machine['python']}."
    return {
        PAGE: page(PAGE.read_text(), taken, results, costs),
        PICTURE: picture(results),
        **scale_pictures(costs),
    }

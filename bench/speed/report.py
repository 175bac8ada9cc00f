"""The generated parts of docs/performance.md: tables, the goals, the picture."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bench.speed import plots, scale
from bench.speed.contenders import BARE, CAREFUL, FLOOR, GHEALTH, SIMPLE, STOCK
from bench.speed.figures import RATIOS, Row
from bench.speed.gateways import ALONE, ROOT
from bench.speed.plots import shown
from bench.speed.rows import CHECK_ADDR, CHECK_ALONE, CHECK_TLS, ROWS
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

    def worst(self, results: Results, version: str | None = None) -> float | None:
        """Return the value with the gateway that is worst for ghealth; None if not measured.

        Args:
            results: The rows.
            version: Another version of ghealth; its ratio is that of medians.
        """
        values = []
        for row in results.get(self.row, {}).values():
            own = row.get(version or self.whose, {})
            if self.figure not in own or (version and self.whose != next(iter(row))):
                continue
            value = own[self.figure]
            if self.beside and version:
                value /= row[self.beside][self.figure]
            elif self.beside:
                value = row[RATIOS][self.beside][self.figure]
            values.append(value - (row[self.over][self.figure] if self.over else 0.0))
        return (min if self.least else max)(values, default=None)

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
    *(
        goal
        for name, most in ((CHECK_ADDR, 90), (CHECK_ALONE, 90), (CHECK_TLS, 120))
        for goal in (
            Goal(f"`{name}`, ms", "command", "ms", most, whose=name),
            Goal(f"`{name}`, MiB", "command", "MiB", 25, whose=name),
        )
    ),
    Goal("Resident MiB at the start", "memory", "resident MiB", 59),
    Goal("MiB more after 100,000 checks", "memory", "MiB more after 100,000 checks", 1),
    Goal("Resident MiB after all loads", "memory", "resident MiB at the end", 64),
    Goal("Start", "start", "ms", 1.15, BARE),
    Goal("A storm, checks a second", "storm", "checks a second", 0.55, SIMPLE, least=True),
)


def goals(results: Results, versions: Iterable[str] = ()) -> str:
    """Return the table of the goals of the rows that were measured.

    Args:
        results: The rows.
        versions: Other versions of ghealth, which get a column each.
    """
    lines = [f"| | goal | measured | |{''.join(f' {name} |' for name in versions)}"]
    lines.append("|---" * lines[0].count(" |") + "|")
    for goal in GOALS:
        if goal.row not in results:
            continue
        value = goal.worst(results)
        limit = f"{'≥' if goal.least else '≤'} {shown(goal.limit)}"
        limit += f" of the {goal.beside}" if goal.beside else ""
        limit += f" more than the {goal.over}" if goal.over else ""
        verdict = "not measured yet"
        if value is not None:
            verdict = "met" if goal.met(value) else "**missed**"
        lines.append(f"| {goal.text} | {limit} |{_cell(value)} | {verdict} |")
        lines[-1] += "".join(f"{_cell(goal.worst(results, name))} |" for name in versions)
    return "\n".join(lines)


def _cell(value: float | None) -> str:
    return "" if value is None else f" {shown(value)}"


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
    memory = results["memory"][ALONE][GHEALTH]["resident MiB"]
    lines = ["| pods | checks a second | CPU, cores in all | resident GiB in all |"]
    lines.append("|---|---|---|---|")
    for pods in (10, 1000):
        checks = pods * (_NODES / _INTERVAL + _KUBELET)
        cores = (checks * per_check + pods * per_second) / 1e3
        lines.append(f"| {pods:,} | {checks:,.0f} | {cores:.2g} | {shown(pods * memory / 1024)} |")
    return "\n".join(lines)


def scale_table(name: str, costs: Costs) -> str:
    """Return the table of one thing whose number grows."""
    figures = list(costs[0])
    lines = [f"| number | {' | '.join(figures)} |", "|---|" + "---|" * len(figures)]
    for number, found in costs.items():
        lines.append(f"| {number:,} | {' | '.join(shown(found[f]) for f in figures)} |")
    exponents = [scale.exponent(costs, f) for f in figures]
    cells = [f"{e:.2f}" + ("" if e <= scale.LINEAR else " **missed**") for e in exponents]
    lines.append(f"| *exponent of the last step* | {' | '.join(cells)} |")
    return "\n\n".join([f"### {SCALES[name].title}", "\n".join(lines)])


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
    """Return the page and the picture by file.

    Args:
        found: The content of results.json.
        costs: The costs by number.
    """
    machine, results = found["machine"], found["rows"]
    taken = (
        f"Commit {machine['commit']}, {found['rounds']} rounds on {machine['cores']} cores with "
        f"Python {machine['python']}."
    )
    return {
        PAGE: page(PAGE.read_text(), taken, results, costs),
        PICTURE: picture(results),
    }

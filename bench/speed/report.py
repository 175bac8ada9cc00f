"""The table and the picture in docs/performance.md, made from the results."""

from pathlib import Path
from typing import Final

from bench.speed.contenders import FLOOR, GHEALTH, GO, STOCK
from bench.speed.rows import Row

ROOT: Final = Path(__file__).parents[2]
PAGE: Final = ROOT / "docs" / "performance.md"
PICTURE: Final = ROOT / "docs" / "performance.svg"
_MADE: Final = "<!-- {}: made by `make bench ARGS=--write` -->"
_END: Final = "<!-- end of {} -->"

_COLUMNS: Final = (GHEALTH, GO, STOCK, FLOOR, "floor on uvloop", "bare imports")


def _shown(value: object) -> str:
    if value is None:
        return "never"
    return f"{value:,.3g}" if isinstance(value, float) and value < 100 else f"{value:,.0f}"


def table(results: dict[str, Row]) -> str:
    """Render rows of figures and ratios.

    Args:
        results: What was measured, by the row's name.
    """
    lines = ["| row | " + " | ".join((*_COLUMNS, "ghealth is")) + " |"]
    lines.append("|---|" + "---|" * (len(_COLUMNS) + 1))
    for name, row in results.items():
        figures = dict.fromkeys(f for c in _COLUMNS for f in row.get(c, {}))
        for figure in figures:
            cells = [_shown(row[c][figure]) if figure in row.get(c, {}) else "" for c in _COLUMNS]
            ratios = "; ".join(
                f"{ratio[figure]:.2f} of the {other}'s"
                for other, ratio in row.get("ratios", {}).items()
                if ratio.get(figure)
            )
            lines.append(f"| {name}: {figure} | {' | '.join(cells)} | {ratios} |")
    return "\n".join(lines)


_NODES, _INTERVAL, _KUBELET = 6, 10, 0.1


def fleet(results: dict[str, Row]) -> str:
    """Work out what fleets take.

    Args:
        results: What was measured.
    """
    per_check = results["7 ten checks a second"][GHEALTH]["CPU ms a check"]
    per_second = results["7 idle"][GHEALTH]["CPU ms a second"]
    memory = results["5 memory"][GHEALTH]
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


def filled(page: str, results: dict[str, Row]) -> str:
    """Put the tables into the page.

    Args:
        page: Its text.
        results: What was measured.
    """
    rows = {name: row for name, row in results.items() if name != "machine"}
    for name, made in (("results", table(rows)), ("fleet", fleet(rows))):
        begin, end = _MADE.format(name), _END.format(name)
        before, _, rest = page.partition(begin)
        page = f"{before}{begin}\n{made}\n{end}{rest.partition(end)[2]}"
    return page


def write(results: dict[str, Row]) -> None:
    """Write the table into the page, and draw the picture beside it.

    Args:
        results: What was measured.
    """
    PAGE.write_text(filled(PAGE.read_text(), results))
    PICTURE.write_text(picture(results))


_BAR, _GAP, _LEFT, _WIDTH = 18, 26, 250, 420
_COLOURS: Final = {GHEALTH: "#1f77b4", GO: "#888888", STOCK: "#bbbbbb", FLOOR: "#dddddd"}
_SHOWN: Final = (
    ("2 a new connection a check", "p99 ms"),
    ("3 gateway takes 20 ms", "median ms"),
    ("4 requests at the gateway", "a second, checks, gateway takes 20 ms"),
    ("5 memory", "resident MiB"),
    ("7 ten checks a second", "CPU ms a check"),
)


def picture(results: dict[str, Row]) -> str:
    """Draw each contender's bar for what an ALB does; shorter is better in all of them.

    Args:
        results: What was measured.
    """
    parts, y = [], 10
    for name, figure in _SHOWN:
        row = results.get(name, {})
        bars = {c: row[c][figure] for c in _COLOURS if figure in row.get(c, {})}
        parts.append(f'<text x="0" y="{y + 14}" font-weight="bold">{name[2:]}: {figure}</text>')
        y += _GAP
        for contender, value in bars.items():
            width = max(1, round(_WIDTH * value / max(bars.values())))
            parts.append(
                f'<text x="{_LEFT - 8}" y="{y + 13}" text-anchor="end">{contender}</text>'
                f'<rect x="{_LEFT}" y="{y}" width="{width}" height="{_BAR - 4}" '
                f'fill="{_COLOURS[contender]}"/>'
                f'<text x="{_LEFT + width + 6}" y="{y + 13}">{_shown(float(value))}</text>'
            )
            y += _BAR
        y += 10
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_LEFT + _WIDTH + 80}" height="{y}" '
        f'font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="white"/>'
        f"{''.join(parts)}</svg>\n"
    )

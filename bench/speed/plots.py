"""Bars, as SVG."""

from collections.abc import Mapping
from itertools import chain, cycle
from typing import Final

_BAR, _GAP, _WIDTH = 18, 26, 420
_GREYS: Final = ("#888888", "#aaaaaa", "#bbbbbb", "#cccccc", "#dddddd")
_BLUE: Final = "#1f77b4"


def shown(value: float) -> str:
    """Format a figure with three digits."""
    if abs(value) < 0.0005:
        return "0"
    return f"{value:,.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def bars(groups: Mapping[str, Mapping[str, float]], left: int = 250) -> str:
    """Draw a group of bars for each title, beside `left` pixels of names; its first bar is blue."""
    parts, y = [], 10
    for title, group in groups.items():
        parts.append(f'<text x="0" y="{y + 14}" font-weight="bold">{title}</text>')
        y += _GAP
        colours = chain((_BLUE,), cycle(_GREYS))
        for name, value in group.items():
            width, colour = max(1, round(_WIDTH * value / max(group.values()))), next(colours)
            parts.append(
                f'<text x="{left - 8}" y="{y + 13}" text-anchor="end">{name}</text>'
                f'<rect x="{left}" y="{y}" width="{width}" height="{_BAR - 4}" fill="{colour}"/>'
                f'<text x="{left + width + 6}" y="{y + 13}">{shown(value)}</text>'
            )
            y += _BAR
        y += 10
    width = left + _WIDTH + 80
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{y}" '
        f'viewBox="0 0 {width} {y}" font-family="sans-serif" font-size="12">'
        f'<rect width="100%" height="100%" fill="white"/>{"".join(parts)}</svg>\n'
    )

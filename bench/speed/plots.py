"""The pictures of docs/performance.md, as SVG."""

import math
from collections.abc import Mapping, Sequence
from typing import Final

Point = tuple[float, float]

_BAR, _GAP, _WIDTH = 18, 26, 420
_GREYS: Final = ("#888888", "#aaaaaa", "#bbbbbb", "#cccccc", "#dddddd")
_BLUE: Final = "#1f77b4"
_PANEL_WIDTH, _PANEL_HEIGHT, _MARGIN = 300, 200, 60


def shown(value: float | None) -> str:
    """Format a figure with three digits; None is "never"."""
    if value is None:
        return "never"
    if value and abs(value) < 0.0005:
        return "0"
    return f"{value:,.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def _svg(width: int, height: int, parts: Sequence[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">'
        f'<rect width="100%" height="100%" fill="white"/>{"".join(parts)}</svg>\n'
    )


def bars(groups: Mapping[str, Mapping[str, float]], left: int = 250) -> str:
    """Draw a group of bars for each title, beside `left` pixels of names; its first bar is blue."""
    parts, y = [], 10
    for title, group in groups.items():
        parts.append(f'<text x="0" y="{y + 14}" font-weight="bold">{title}</text>')
        y += _GAP
        for index, (name, value) in enumerate(group.items()):
            width = max(1, round(_WIDTH * value / max(group.values())))
            colour = _GREYS[(index - 1) % len(_GREYS)] if index else _BLUE
            parts.append(
                f'<text x="{left - 8}" y="{y + 13}" text-anchor="end">{name}</text>'
                f'<rect x="{left}" y="{y}" width="{width}" height="{_BAR - 4}" fill="{colour}"/>'
                f'<text x="{left + width + 6}" y="{y + 13}">{shown(value)}</text>'
            )
            y += _BAR
        y += 10
    return _svg(left + _WIDTH + 80, y, parts)


def curves(title: str, panels: Mapping[str, Mapping[int, float]]) -> str:
    """Draw a panel for each figure, both axes logarithmic, with a dashed line for linear growth.

    Args:
        title: The heading, which names what the horizontal axis counts.
        panels: Cost by number for each figure; costs of 0 or less cannot be drawn.
    """
    parts = [f'<text x="10" y="20" font-weight="bold">{title}</text>']
    for index, (figure, costs) in enumerate(panels.items()):
        left = _MARGIN + index * (_PANEL_WIDTH + _MARGIN + 20)
        parts += _panel(left, f"{figure}, more than with none", costs)
    width = len(panels) * (_PANEL_WIDTH + _MARGIN + 20) + 20
    return _svg(width, _PANEL_HEIGHT + 110, parts)


def _panel(left: int, figure: str, costs: Mapping[int, float]) -> list[str]:
    top, bottom = 60, 60 + _PANEL_HEIGHT
    points = [(float(x), y) for x, y in sorted(costs.items()) if y > 0]
    frame = f'x="{left}" y="{top}" width="{_PANEL_WIDTH}" height="{_PANEL_HEIGHT}"'
    parts = [
        f'<text x="{left}" y="{top - 14}">{figure}</text>',
        f'<rect {frame} fill="none" stroke="#888888"/>',
    ]
    if not points:
        return [*parts, f'<text x="{left + 20}" y="{top + 40}">no cost beyond noise</text>']
    x_low, x_high = math.log10(min(costs)), math.log10(max(costs))
    y_low = math.floor(math.log10(min(y for _, y in points)))
    y_high = max(math.ceil(math.log10(max(y for _, y in points))), y_low + 1)

    def place(point: Point) -> Point:
        x, y = math.log10(point[0]), math.log10(point[1])
        return (
            left + _PANEL_WIDTH * (x - x_low) / ((x_high - x_low) or 1),
            bottom - _PANEL_HEIGHT * (y - y_low) / (y_high - y_low),
        )

    for number in costs:
        x, _ = place((number, 10.0**y_low))
        parts.append(f'<text x="{x:.0f}" y="{bottom + 18}" text-anchor="middle">{number:,}</text>')
    for power in range(y_low, y_high + 1):
        _, y = place((min(costs), 10.0**power))
        parts.append(
            f'<text x="{left - 6}" y="{y + 4:.0f}" text-anchor="end">{shown(10.0**power)}</text>'
            f'<path d="M{left} {y:.0f}h{_PANEL_WIDTH}" stroke="#dddddd"/>'
        )
    last_x, last_y = points[-1]
    begin_x = max(min(costs), last_x * 10.0**y_low / last_y)
    linear = (place((begin_x, last_y * begin_x / last_x)), place((last_x, last_y)))
    drawn = [place(point) for point in points]
    parts += [
        _line(linear, 'stroke="#888888" stroke-dasharray="4 4"'),
        _line(drawn, f'stroke="{_BLUE}" stroke-width="2"'),
        *(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{_BLUE}"/>' for x, y in drawn),
    ]
    return parts


def _line(points: Sequence[Point], style: str) -> str:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline points="{path}" fill="none" {style}/>'

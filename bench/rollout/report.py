"""The report of the runs: tables and pictures for the page, and broken promises."""

from collections.abc import Callable, Iterable
from html import escape
from statistics import median
from typing import Any, Final

from bench.rollout.contenders import CONTENDERS, GHEALTH, HTTP
from bench.rollout.events import EVENTS, Event
from bench.rollout.fleet import LOOK
from bench.rollout.numbers import INTERVAL, PROBE_TIMEOUT, SCALE, TIMEOUT, UNHEALTHY_THRESHOLD

Run = dict[str, Any]

BOUND: Final = UNHEALTHY_THRESHOLD * INTERVAL + TIMEOUT
"""Seconds within which a broken pod must get no more requests."""

PICTURES: Final = {
    "restart": "A rolling restart with the recommended numbers",
    "bare": "The end of a pod with Istio's own defaults: no preStop, 5 s of drain",
    "sick": "A gateway that answers 503: how long each health check leaves it in",
}
"""The events that are drawn, each from its first seed."""

NOT_ASKED: Final = "\u2013"


# ---- tables -------------------------------------------------------------------------------------


def tables(runs: list[Run]) -> str:
    """Return the tables of the page."""
    return "\n\n".join(
        f"{title}\n\n{_table(runs, cell)}"
        for title, cell in (
            ("Failed unary calls, of all calls in all runs:", _failed),
            ("Long streams that were cut, of all long streams:", _streams),
            (
                (
                    "Seconds from the failure of a gateway to the last request that a node sent to "
                    "it (median, worst):"
                ),
                _out_after,
            ),
            (
                "Seconds for which a ready pod got no requests, summed over pods (median):",
                _left,
            ),
        )
    )


def _table(runs: list[Run], cell: Callable[[list[Run]], str]) -> str:
    rows = [
        "| event | runs | " + " | ".join(contender.title for contender in CONTENDERS) + " |",
        "|---|---|" + "---|" * len(CONTENDERS),
    ]
    for event in EVENTS:
        mine = [run for run in runs if run["event"] == event.name]
        cells = []
        for contender in CONTENDERS:
            theirs = [run["contenders"].get(contender.name) for run in mine]
            there = [result for result in theirs if result]
            cells.append(cell(there) if there else NOT_ASKED)
        if any(text != NOT_ASKED for text in cells):
            rows.append(f"| {event.title} | {len(mine)} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def _failed(results: list[Run]) -> str:
    failed, calls = (sum(result[key] for result in results) for key in ("failed", "calls"))
    return f"**{failed}** of {calls}" if failed else f"0 of {calls}"


def _streams(results: list[Run]) -> str:
    cut, streams = (sum(result[key] for result in results) for key in ("streams_failed", "streams"))
    return f"{cut} of {streams}"


def _out_after(results: list[Run]) -> str:
    times = [result["out_after"] for result in results]
    return f"{median(times):.0f}, {max(times):.0f}" if max(times) else NOT_ASKED


def _left(results: list[Run]) -> str:
    return f"{median(result['left_out_seconds'] for result in results):.0f}"


# ---- promises -----------------------------------------------------------------------------------


def is_void(run: Run) -> bool:
    """Return whether the machine paused for longer than the shortest timeout, ghealth's probe's."""
    return bool(run["longest_pause_ms"] > PROBE_TIMEOUT / SCALE * 1000)


def broken(runs: Iterable[Run]) -> list[str]:
    """Return the promises that the runs break, one line each."""
    found = []
    events = {event.name: event for event in EVENTS}
    failed = dict.fromkeys(events, (0, 0))
    for run in runs:
        event = events[run["event"]]
        ghealth, http = run["contenders"][GHEALTH], run["contenders"][HTTP]
        where = f"{event.title}, seed {run['seed']}"
        if is_void(run):
            found.append(
                f"{where}: no verdict, this machine paused for {run['longest_pause_ms']} ms"
            )
            continue
        if event.planned and ghealth["failed"]:
            found.append(f"{where}: {ghealth['failed']} calls failed: {ghealth['results']}")
        # The delay of the observation, and of everything else on this machine.
        late = (2 * LOOK + run["longest_pause_ms"] / 1000) * SCALE
        if event.bounded and ghealth["out_after"] > BOUND + late:
            found.append(
                f"{where}: routed to {ghealth['out_after']} s after it fell ill, "
                f"more than {BOUND:.0f} + {late:.1f}"
            )
        ours, theirs = failed[event.name]
        failed[event.name] = (ours + ghealth["failed"], theirs + http["failed"])
    for name, (ours, theirs) in failed.items():
        if _both_can_meet(events[name]) and ours > theirs * 1.1 + 2:
            found.append(f"{events[name].title}: {ours} calls failed, {theirs} by the HTTP check")
    return found


def _both_can_meet(event: Event) -> bool:
    """Return whether an event does not come from the sidecar."""
    return "twin" not in event.contenders or event.planned


# ---- pictures -----------------------------------------------------------------------------------

_LEFT, _WIDTH, _ROW, _TOP = 170, 740, 30, 64
_COLOURS: Final = {
    "starting": "#d9d9d9",
    "ready": "#8fce9b",
    "preStop": "#f6d37a",
    "draining": "#f0a35e",
    "503": "#e77f7f",
    "hung": "#b07fe7",
    "by hand": "#e7c27f",
}


_BROKEN: Final = ("503", "hung", "by hand")


def picture(run: Run) -> str:
    """Draw a run: each pod's states, the answers to ghealth's checks, and every failed call.

    If a gateway broke, a bar shows for how long each target group still sent requests to it.
    """
    pods = run["pods"]
    broke = _first_failure(pods)
    begin, end = -10.0, float(run["seconds"]) + 5
    lanes = [name for name in run["contenders"] if name != "twin"]
    height = _TOP + _ROW * (len(pods) + len(lanes)) + 60

    def x(at: float) -> int:
        return int(_LEFT + (min(max(at, begin), end) - begin) / (end - begin) * _WIDTH)

    parts = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_LEFT + _WIDTH + 20} {height}" '
            'font-family="sans-serif" font-size="12">'
        ),
        '<rect width="100%" height="100%" fill="white"/>',
        _text(10, 20, PICTURES[run["event"]], size=15),
    ]
    at_x = _LEFT
    for state, colour in _COLOURS.items():
        if any(state == seen for states in pods.values() for _, seen in states):
            parts.append(f'<rect x="{at_x}" y="32" width="12" height="12" fill="{colour}"/>')
            parts.append(_text(at_x + 16, 42, state))
            at_x += 90
    for colour, word in (("#177a2d", "check passed"), ("#c00000", "check or call failed")):
        parts.append(f'<circle cx="{at_x + 6}" cy="38" r="3" fill="{colour}"/>')
        parts.append(_text(at_x + 14, 42, word))
        at_x += 110
    floor = _TOP + _ROW * (len(pods) + len(lanes))
    step = 10 if end - begin < 150 else 20
    for tick in range(0, int(end) + 1, step):
        parts.append(
            f'<line x1="{x(tick)}" x2="{x(tick)}" y1="{_TOP}" y2="{floor}" stroke="#eeeeee"/>'
        )
        parts.append(_text(x(tick) - 6, floor + 16, f"{tick}"))
    y = _TOP
    for number, (host, states) in enumerate(pods.items(), 1):
        parts.append(_text(10, y + 16, f"pod {number}"))
        for (since, state), (until, _) in zip(states, [*states[1:], (end, "")], strict=True):
            if state != "gone" and x(until) > x(since):
                parts.append(
                    f'<rect x="{x(since)}" y="{y + 4}" width="{x(until) - x(since)}" '
                    f'height="{_ROW - 12}" fill="{_COLOURS[state]}"/>'
                )
        parts += [
            _dot(x(at), y + 13, passed=passed)
            for at, asked, passed in run["contenders"][GHEALTH]["checks"]
            if asked == host and begin <= at <= end
        ]
        y += _ROW
    titles = {contender.name: contender.title for contender in CONTENDERS}
    for name in lanes:
        failures = [f for f in run["contenders"][name]["failures"] if not f[3]]
        routed = run["contenders"][name]["out_after"]
        parts.append(_text(10, y + 16, titles[name]))
        parts.append(
            f'<line x1="{_LEFT}" x2="{_LEFT + _WIDTH}" y1="{y + 13}" y2="{y + 13}" '
            'stroke="#cccccc"/>'
        )
        parts += _bar(x(broke), x(broke + routed), y, f"{routed:.0f} s")
        parts += [_dot(x(at), y + 13, passed=False) for at, *_ in failures]
        parts.append(_text(_LEFT + _WIDTH - 60, y + 9, f"{len(failures)} failed"))
        y += _ROW
    parts.append(_text(_LEFT, y + 36, "seconds of the cluster; a dot on a pod is a node's check"))
    return "\n".join([*parts, "</svg>", ""])


def _first_failure(pods: dict[str, list[tuple[float, str]]]) -> float:
    """Return when the first gateway broke, or 0, when the event begins."""
    times = [at for states in pods.values() for at, state in states if state in _BROKEN]
    return min(times, default=0.0)


def _bar(x: int, end: int, y: int, text: str) -> list[str]:
    if end == x:
        return []
    rect = f'<rect x="{x}" y="{y + 6}" width="{end - x}" height="14" fill="{_COLOURS["503"]}"/>'
    return [rect, _text(end + 6, y + 9, text)]


def _text(x: float, y: float, text: str, size: int = 12) -> str:
    return f'<text x="{x}" y="{y}" font-size="{size}" fill="#222222">{escape(text)}</text>'


def _dot(x: float, y: float, *, passed: bool) -> str:
    colour = "#177a2d" if passed else "#c00000"
    return f'<circle cx="{x}" cy="{y}" r="2.5" fill="{colour}"/>'

"""The report of the runs: tables for the page, and broken promises."""

from collections.abc import Callable, Iterable
from statistics import median
from typing import Any, Final

from bench.rollout.contenders import CONTENDERS, GHEALTH, HTTP
from bench.rollout.events import EVENTS, Event
from bench.rollout.fleet import LOOK
from bench.rollout.numbers import INTERVAL, PROBE_TIMEOUT, SCALE, TIMEOUT, UNHEALTHY_THRESHOLD

Run = dict[str, Any]

BOUND: Final = UNHEALTHY_THRESHOLD * INTERVAL + TIMEOUT
"""Seconds within which a broken pod must get no more requests."""

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

"""The report of the runs: tables for the page, and broken promises."""

import json
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, Final

from bench import pages
from bench.rollout.contenders import CONTENDERS, GHEALTH, HTTP, TWIN
from bench.rollout.events import EVENTS
from bench.rollout.fleet import LOOK
from bench.rollout.numbers import INTERVAL, PROBE_TIMEOUT, SCALE, TIMEOUT, UNHEALTHY_THRESHOLD

Run = dict[str, Any]

SEEDS: Final = 20
"""Of each event, in the results."""

RESULTS: Final = Path(__file__).with_name("results.json")
PAGE: Final = Path(__file__).parents[2] / "docs" / "rollouts.md"

BOUND: Final = UNHEALTHY_THRESHOLD * INTERVAL + TIMEOUT
"""Seconds within which a broken pod must get no more requests."""

NOT_ASKED: Final = "\u2013"


# ---- tables -------------------------------------------------------------------------------------


def write(runs: list[Run]) -> None:
    """Write the results, with earlier ones of runs that were not made again, and the page."""
    made = {(run["event"], run["seed"]): run for run in (*json.loads(RESULTS.read_text()), *runs)}
    lines = ",\n".join(json.dumps(run) for run in made.values())
    RESULTS.write_text(f"[\n{lines}\n]\n")
    PAGE.write_text(filled(PAGE.read_text(), list(made.values())))


def filled(page: str, runs: list[Run]) -> str:
    """Fill in the tables of the page."""
    return pages.filled(page, "make rollout", {"rollout": tables(runs)})


def tables(runs: list[Run]) -> str:
    """Return the tables of the page."""
    cells = {
        "Failed unary calls, of all calls in all runs:": _failed,
        "Long streams that were cut, of all long streams:": _streams,
        "Seconds from the failure of a gateway to the last request that a node sent to it (median, "
        "worst):": _out_after,
        "Seconds for which a ready pod got no requests, summed over pods (median):": _left,
    }
    return "\n\n".join(f"{title}\n\n{_table(runs, cell)}" for title, cell in cells.items())


def _table(runs: list[Run], cell: Callable[[list[Run]], str]) -> str:
    rows = []
    for event in EVENTS:
        mine = [run["contenders"] for run in runs if run["event"] == event.name]
        cells = []
        for contender in CONTENDERS:
            theirs = [results[contender.name] for results in mine if contender.name in results]
            cells.append(cell(theirs) if theirs else NOT_ASKED)
        if any(text != NOT_ASKED for text in cells):
            rows.append([event.title, f"{len(mine)}", *cells])
    return pages.table(["event", "runs", *(contender.title for contender in CONTENDERS)], rows)


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


def broken(runs: list[Run]) -> list[str]:
    """Return the promises that the runs break, one line each."""
    found = []
    for event in EVENTS:
        ours = theirs = 0
        for run in (run for run in runs if run["event"] == event.name):
            ghealth, pause = run["contenders"][GHEALTH], run["longest_pause_ms"]
            where = f"{event.title}, seed {run['seed']}"
            if is_void(run):
                found.append(f"{where}: no verdict, this machine paused for {pause} ms")
                continue
            if event.planned and ghealth["failed"]:
                found.append(f"{where}: {ghealth['failed']} calls failed: {ghealth['failures']}")
            # The delay of the observation, and of everything else on this machine.
            bound = BOUND + (2 * LOOK + pause / 1000) * SCALE
            if event.bounded and ghealth["out_after"] > bound:
                after = f"{ghealth['out_after']} s after it fell ill, more than {bound:.1f}"
                found.append(f"{where}: routed to {after}")
            ours += ghealth["failed"]
            theirs += run["contenders"][HTTP]["failed"]
        by_sidecar = TWIN in event.contenders and not event.planned
        if not by_sidecar and ours > theirs * 1.1 + 2:
            found.append(f"{event.title}: {ours} calls failed, {theirs} by the HTTP check")
    return found

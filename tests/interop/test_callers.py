"""Let every kind of caller check ghealth in every state, and compare the conclusions."""

import argparse
import os
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

from tests.interop.asking import TIMEOUT
from tests.interop.callers import CALLERS, FOLLOWERS, PATHS, Caller, Follower, Row
from tests.interop.stage import STATES, Ghealth, stage
from tests.interop.tools import BuildError, Tool, prepare
from tests.support import interrupt
from tests.support.gateway import READY, SICK, Agent, wait_until

AT_ONCE: Final = 2
"""Simultaneous callers: few enough for two cores to meet all timeouts. Those of the kubelet and
grpc-health-probe are a second, and ghealth answers 50 ms before it."""

_BEGIN: Final = "<!-- interop: made by `make interop-table` -->\n"
_END: Final = "<!-- end of interop -->"

PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"


class Cell(NamedTuple):
    """One caller in one state: the result, and the cell of the table."""

    verdict: str
    text: str


Table = dict[str, dict[str, Cell]]
"""The cells by row and column."""


def main() -> int:
    """Run the suite and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.interop", description=__doc__)
    parser.add_argument("--page", type=Path, metavar="FILE", help="whose tables to compare")
    parser.add_argument("--write", action="store_true", help="write the tables into the page")
    arguments = parser.parse_args()
    # As for Ctrl-C: the programs that were started are ended.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    print("Building the callers, which takes minutes the first time.", file=sys.stderr)
    try:
        tools = prepare()
    except BuildError as error:
        print(error, file=sys.stderr)
        return 1
    tables = {
        "caller": in_each_state(tools, CALLERS),
        "caller, over time": over_time(tools),
        "an ALB's path": in_each_state(tools, PATHS),
    }
    text = "\n".join(_markdown(*table) for table in tables.items())
    cells = [cell for table in tables.values() for row in table.values() for cell in row.values()]
    counts = Counter(cell.verdict for cell in cells)
    shown = (PASSED, FAILED, SKIPPED) if counts[SKIPPED] else (PASSED, FAILED)
    print(text, ", ".join(f"{counts[verdict]} {verdict}" for verdict in shown), sep="\n")
    stale = arguments.page and not counts[SKIPPED] and _is_stale(arguments.page, text)
    if stale and arguments.write:
        arguments.page.write_text(_with_tables(arguments.page.read_text(), text))
    elif stale:
        print(f"{arguments.page} shows other tables: make interop-table", file=sys.stderr)
        return 1
    return 1 if counts[FAILED] else 0


def _is_stale(page: Path, tables: str) -> bool:
    text = page.read_text()
    return _with_tables(text, tables) != text


def _with_tables(text: str, tables: str) -> str:
    """Put the tables into the text of a page, between their comments."""
    before, begin, rest = text.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    return f"{before}{begin}{tables}{end}{after}"


def in_each_state(tools: frozenset[Tool], callers: Sequence[Caller]) -> Table:
    """Let every caller check once in every state."""
    table: Table = {caller.name: {} for caller in callers}
    for number, state in enumerate(STATES, 1):
        print(f"state {number} of {len(STATES)}: {state}", file=sys.stderr)
        with stage(state) as (_, ghealth), ThreadPoolExecutor(AT_ONCE) as pool:
            expected = [c.healthy if state == READY else c.unhealthy for c in callers]
            asks = [partial(caller.ask, caller.port_of(ghealth)) for caller in callers]
            cells = pool.map(partial(_judge, tools), callers, expected, asks)
            for caller, cell in zip(callers, cells, strict=True):
                table[caller.name][state] = cell
    return table


def over_time(tools: frozenset[Tool]) -> Table:
    """Let every follower watch one ghealth from start to end."""
    table: Table = {follower.name: {} for follower in FOLLOWERS}
    with stage() as (agent, ghealth), ExitStack() as stack:
        opinions = {
            follower: stack.enter_context(follower.follow(follower.port_of(ghealth)))
            for follower in FOLLOWERS
            if follower.needs in tools
        }

        def settle(follower: Follower, expected: str) -> str:
            opinion = opinions[follower]
            wait_until(lambda: opinion() == expected, TIMEOUT)
            return opinion()

        for event, ready in _life(agent, ghealth):
            print(f"followers: {event}", file=sys.stderr)
            for follower in FOLLOWERS:
                expected = follower.healthy if ready else follower.unhealthy
                conclude = partial(settle, follower, expected)
                table[follower.name][event] = _judge(tools, follower, expected, conclude)
    return table


def _life(agent: Agent, ghealth: Ghealth) -> Iterator[tuple[str, bool]]:
    """Cause the events; yield the name of each, and whether the gateway is ready then."""
    yield "ready", True
    agent.state = SICK
    yield "503", False
    agent.state = READY
    yield "ready again", True
    ghealth.stop()
    yield "ghealth ended", False
    ghealth.start()
    yield "started again", True
    ghealth.drain()
    yield "draining", False
    ghealth.stop()
    ghealth.start()
    yield "restarted", True


def _judge(tools: frozenset[Tool], row: Row, expected: str, conclude: Callable[[], str]) -> Cell:
    if row.needs not in tools:
        # With CI=true every tool must be installed.
        return Cell(FAILED if os.environ.get("CI") == "true" else SKIPPED, f"no {row.needs.value}")
    try:
        concluded = conclude()
    except Exception as error:
        concluded = f"{type(error).__name__}: {error}"
    if concluded == expected:
        return Cell(PASSED, concluded)
    return Cell(FAILED, f"**{' '.join(concluded.split())}** instead of {expected}")


def _markdown(title: str, table: Table) -> str:
    columns = list(next(iter(table.values())))
    lines = [[title, *columns], ["---"] * (len(columns) + 1)]
    lines += ([name, *(cell.text for cell in row.values())] for name, row in table.items())
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    interrupt.run(main)

"""Run the floods and print a table; exit with 1 if a bound is broken.

Each row runs against a new ghealth process in a memory control group, with the memory limit that
deploy/ recommends. Meanwhile an ALB and a kubelet check, each time on a new connection.
"""

import argparse
import sys
import time
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Final

from tests.flood import attacks, control_group, honest, house
from tests.flood.facts import nothing_grows, open_streams_do_not_hold_the_end
from tests.flood.rows import MIX, ROWS, SHORT, SLOW, Row
from tests.support.gateway import Agent
from tools.tables import MEMORY_LIMIT

if TYPE_CHECKING:
    from collections.abc import Callable

LIMIT: Final = float(MEMORY_LIMIT)
"""MiB."""

IN_TIME: Final = 1.0
"""Seconds within which honest callers must get an answer."""
WITHOUT_DESCRIPTORS: Final = 2.0
"""The same while the flood uses up the descriptors."""
RECOVERY: Final = 3.0
"""Seconds after the end of a flood during which answers may still be late."""
BACK: Final = 20.0
"""MiB more than before the flood that may stay in use after it."""
SETTLING: Final = 20.0
"""Seconds after the recovery for memory and descriptors to be released."""
FDS_NEAR: Final = 3
"""Descriptors more than before the flood that may stay open after it."""
DRAIN_MARGIN: Final = 2.0
"""Seconds that the end may take in addition to the drain delay and the grace."""
SHORT_SECONDS, SHORT_DROPS = 3.0, 3000
SHORT_FACTS: Final = ("drop-message", "open-streams")
SLACK: Final = 3.0
"""In the short form, which runs on slow CI machines, times may be this many times longer."""
READY: Final = honest.Answer(0, honest.SERVING)


@dataclass
class Result:
    """The measurements of one row."""

    row: Row
    before: float = 0.0
    peak: float = 0.0
    after: float = 0.0
    sockets: float | None = None
    checks: int = 0
    wrong: int = 0
    longest: dict[str, float] = field(default_factory=dict)
    longest_after: float = 0.0
    on_the_wall: float = 0.0
    fds: tuple[int, int, int] = (0, 0, 0)
    exit: str = ""
    broken: list[str] = field(default_factory=list)

    def must(self, holds: object, text: str) -> None:
        """Record the text as a broken bound, unless the bound holds."""
        if not holds:
            self.broken.append(text)


def run(row: Row, seconds: float, limit: float, slack: float = 1.0) -> Result:
    """Run one row of the table."""
    result = Result(row)
    with (
        Agent() as gateway,
        control_group.group(limit) as group,
        house.ghealth(group, {"PROBE_URL": gateway.url, **row.settings}) as ghealth,
    ):
        gateway.delay = SLOW if row.slow else 0.0
        callers = honest.callers(ghealth.port, ghealth.process.pid, lambda: (READY,))
        for caller in callers:
            caller.start()
        time.sleep(1.5)
        result.before, fds = ghealth.usage, ghealth.descriptors
        started, most = time.monotonic(), fds
        with house.attackers(row.attackers, ghealth.port, seconds):
            end = started + seconds
            while time.monotonic() < end and ghealth.alive:
                most = max(most, ghealth.descriptors)
                time.sleep(0.1)
        over = time.monotonic()
        if not ghealth.alive:
            result.exit = f"killed after {over - started:.1f} s, status {ghealth.process.poll()}"
            result.must(holds=False, text=result.exit)
        time.sleep(RECOVERY if ghealth.alive else 0)
        settled = time.monotonic() + SETTLING
        while (
            ghealth.alive
            and time.monotonic() < settled
            and (ghealth.usage > result.before + BACK or ghealth.descriptors > fds + FDS_NEAR)
        ):
            time.sleep(0.2)
        time.sleep(0.5)
        for caller in callers:
            caller.stop()
        result.after, result.peak, result.sockets = ghealth.usage, ghealth.peak, group.sockets()
        result.fds = (fds, most, ghealth.descriptors)
        if ghealth.alive:
            judge(result, callers, started, over, slack)
            with house.attackers(row.attackers, ghealth.port, 3 * house.PATIENCE):
                time.sleep(2)
                took = ghealth.terminated()
            status = ghealth.process.returncode
            result.exit = f"{status}, {took:.1f} s"
            allowed = house.DRAIN_DELAY + house.SHUTDOWN_GRACE + slack * DRAIN_MARGIN
            result.must(status == 0 and took < allowed, f"exit status {status} after {took:.1f} s")
            result.broken += [f"log: {line[:200]}" for line in ghealth.errors[:3]]
    return result


def judge(
    result: Result,
    callers: tuple[honest.Caller, honest.Caller],
    started: float,
    over: float,
    slack: float,
) -> None:
    """Compare the honest callers' answers, the memory and the descriptors with the bounds."""
    row = result.row
    for name, caller in zip(("ALB", "liveness"), callers, strict=True):
        bound = slack * (WITHOUT_DESCRIPTORS if row.descriptors else IN_TIME)
        if row.slow and name == "ALB":
            bound += SLOW
        during = caller.log.longest(started, over)
        late = caller.log.longest(over + RECOVERY)
        result.longest[name] = during
        result.on_the_wall = max(result.on_the_wall, caller.log.on_the_wall)
        result.longest_after = max(result.longest_after, caller.log.longest(over, over + RECOVERY))
        result.checks += len(caller.log.waits)
        wrong = caller.log.wrong
        result.wrong += len(wrong)
        if not row.processor:
            result.must(during < bound, f"{name} waited {during:.2f} s")
            result.must(not wrong, f"{len(wrong)} wrong, such as {', '.join(wrong[:3])}")
        result.must(late < bound, f"{name} waited {late:.2f} s after the recovery")
    if row.wrong < 1:
        share = result.wrong / result.checks
        result.must(share <= row.wrong, f"{share:.0%} wrong")
    result.must(result.after <= result.before + BACK, f"{result.after:.0f} MiB stay")
    result.must(result.fds[2] <= result.fds[0] + FDS_NEAR, f"{result.fds[2]} descriptors stay")


def shown(result: Result) -> str:
    """Return a result as a line of the table."""
    sockets = "" if result.sockets is None else f"{result.sockets:6.1f}"
    waits = "/".join(f"{wait:.2f}" for wait in result.longest.values())
    return (
        f"{result.row.name:<20}{result.before:7.1f}{result.peak:7.1f}{result.after:7.1f}{sockets:>7}"
        f"{result.checks:7}{result.wrong:6}{waits:>12}{result.longest_after:7.2f}{result.on_the_wall:7.2f}"
        f"{'/'.join(map(str, result.fds)):>12}  {result.exit}  {'; '.join(result.broken) or 'ok'}"
    )


HEAD: Final = (
    f"{'row':<20}{'before':>7}{'peak':>7}{'after':>7}{'sock':>7}{'checks':>7}{'wrong':>6}{'waits':>12}{'then':>7}"
    f"{'wall':>7}{'fds':>12}  exit  broken bounds"
)


def facts(count: int, names: list[str]) -> int:
    """Run the checks that have no row in the table; return the number of broken bounds."""
    checks: dict[str, Callable[[], tuple[str, str | None]]] = {
        **{f"drop-{stage}": partial(nothing_grows, stage, count) for stage in attacks.STAGES},
        "open-streams": open_streams_do_not_hold_the_end,
    }
    broken = 0
    for name, check in checks.items():
        if not names or name in names:
            figures, wrong = check()
            broken += wrong is not None
            print(f"{name:<20} {figures}  {wrong or 'ok'}", flush=True)
    return broken


def main() -> int:
    """Run the selected rows and checks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=30, help="seconds of each row")
    parser.add_argument("--mix", type=float, default=300, help="seconds of the row `mix`")
    parser.add_argument("--drops", type=int, default=100_000, help="calls dropped at each stage")
    parser.add_argument("--rows", default="", help="names, comma-separated, `mix` too")
    parser.add_argument("--limit", type=float, default=LIMIT, help="memory limit in MiB")
    parser.add_argument("--short", action="store_true", help="a few rows, in a minute or two")
    given = parser.parse_args()
    names = [name for name in given.rows.split(",") if name]
    if given.short:
        given.seconds, given.drops = SHORT_SECONDS, SHORT_DROPS
        names = names or [*SHORT, *SHORT_FACTS]
    chosen = names or [row.name for row in (*ROWS, MIX)]
    print(HEAD, flush=True)
    broken = 0
    for row in (row for row in (*ROWS, MIX) if row.name in chosen):
        result = run(
            row,
            given.mix if row is MIX else given.seconds,
            given.limit,
            SLACK if given.short else 1,
        )
        broken += bool(result.broken)
        print(shown(result), flush=True)
    broken += facts(given.drops, names)
    print(f"{broken} broken" if broken else "every bound holds")
    return int(bool(broken))


if __name__ == "__main__":
    sys.exit(main())

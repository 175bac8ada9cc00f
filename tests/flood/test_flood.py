"""ghealth in a memory control group with the limit of deploy/, while it is flooded: `make flood`.

Each row of `rows` runs against a new ghealth. Meanwhile an ALB and a kubelet check, each time on a
new connection.
"""

import asyncio
import contextlib
import logging
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Final

import pytest

from tests.flood import honest
from tests.flood.rows import ROWS, SLOW, Row, dropping
from tests.support import processes
from tests.support.gateway import Agent
from tools.tables import MEMORY_LIMIT

figures = logging.getLogger(__name__)

MIB: Final = 1 << 20
LIMITS: Final = {
    # Version 1 counts socket buffers only if their limit is set before a process joins the group.
    "memory.kmem.tcp.limit_in_bytes": int(MEMORY_LIMIT * MIB),
    "memory.limit_in_bytes": int(MEMORY_LIMIT * MIB),
    "memory.max": int(MEMORY_LIMIT * MIB),
    "memory.swap.max": 0,
}

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
DRAIN_DELAY, SHUTDOWN_GRACE = 1.0, 1.0
DRAIN_MARGIN: Final = 2.0
"""Seconds that the end may take in addition to the drain delay and the grace."""
SHORT_SECONDS, SHORT_DROPS, DROPS = 3.0, 3000, 100_000
DROPS_LIMIT: Final = 90.0
"""Seconds after which the calls end before all are dropped, if the server cuts many connections."""
ALL_AT_ONCE: Final = 10
"""So many times longer than another row takes that of all attacks."""
SLACK: Final = 3.0
"""In the short form, which runs on slow CI machines, times may be this many times longer."""
MANY: Final = 5
"""So many attackers would use up all processors of a small machine, so they get less priority."""
GROWTH: Final = 2.0
"""MiB that 100,000 dropped calls may add to the native memory in use."""
LEAK: Final = 160
"""Bytes that grpcio may lose of an answer whose caller resets it while it waits for a window."""


@contextlib.contextmanager
def attackers(names: Sequence[str], port: int, seconds: float) -> Iterator[None]:
    """Run attackers until the end of the block, each in its own process, for some seconds."""
    niceness = "5" if len(names) < MANY else "15"
    command = (sys.executable, "-m", "tests.flood.rows")
    started = [
        subprocess.Popen([*command, name, str(port), str(seconds), niceness]) for name in names
    ]
    try:
        yield
        assert not any(process.poll() for process in started), "an attack has failed"
    finally:
        for process in started:
            process.kill()
            process.wait()


def late_or_wrong(
    row: Row, callers: Sequence[honest.Caller], began: float, ended: float, slack: float
) -> Iterator[str]:
    """Compare the honest callers' answers with the bounds."""
    for caller in callers:
        bound = slack * (WITHOUT_DESCRIPTORS if row.descriptors else IN_TIME)
        bound += SLOW if row.slow and caller.name == "ALB" else 0
        during, after = caller.longest(began, ended), caller.longest(ended + RECOVERY)
        checks, wrong = len(caller.waits), len(caller.wrong)
        figures.info("%s: %d checks, %d wrong, up to %.2f s", caller.name, checks, wrong, during)
        if not row.processor and during >= bound:
            yield f"{caller.name} waited {during:.2f} s"
        if not row.processor and wrong:
            yield f"{wrong} wrong, such as {', '.join(caller.wrong[:3])}"
        if after >= bound:
            yield f"{caller.name} waited {after:.2f} s after the recovery"
    share = sum(len(c.wrong) for c in callers) / sum(len(c.waits) for c in callers)
    if share > row.wrong:
        yield f"{share:.0%} wrong"


async def test_others_are_answered_in_a_flood(row: Row, pytestconfig: pytest.Config) -> None:
    """Answers, memory, descriptors and the end keep their bounds; nothing is logged as an error."""
    is_short = pytestconfig.getoption("short")
    seconds = SHORT_SECONDS if is_short else pytestconfig.getoption("seconds")
    seconds *= 1 if row.attack else ALL_AT_ONCE
    slack = SLACK if is_short else 1.0
    everything = [other.name for other in ROWS if other.attack]
    names = [row.name] * row.processes if row.attack else everything
    callers, over = honest.callers(), asyncio.Event()
    times = {"DRAIN_DELAY": str(DRAIN_DELAY), "SHUTDOWN_GRACE": str(SHUTDOWN_GRACE)}
    with (
        Agent() as gateway,
        processes.control_group("memory", LIMITS) as memory,
        processes.server(*memory.prefix, PROBE_URL=gateway.url, **times) as ghealth,
    ):
        gateway.delay = SLOW if row.slow else 0.0
        pid = ghealth.process.pid
        asking = [asyncio.create_task(one.ask(ghealth.port, pid, over)) for one in callers]
        await asyncio.sleep(1.5)
        before, fds = memory.anonymous() / MIB, ghealth.descriptors
        began = time.monotonic()
        with attackers(names, ghealth.port, seconds):
            await asyncio.sleep(seconds)
        ended = time.monotonic()
        await asyncio.sleep(RECOVERY)
        after, after_fds = memory.anonymous() / MIB, ghealth.descriptors
        while after > before + BACK or after_fds > fds + FDS_NEAR:
            if time.monotonic() > ended + RECOVERY + SETTLING:
                break
            await asyncio.sleep(0.2)
            after, after_fds = memory.anonymous() / MIB, ghealth.descriptors
        await asyncio.sleep(0.5)
        over.set()
        await asyncio.gather(*asking)
        most = memory.number("memory.max_usage_in_bytes", "memory.peak") / MIB
        sockets = memory.number("memory.kmem.tcp.max_usage_in_bytes") / MIB
        figures.info("%.1f MiB, %.1f at most, then %.1f", before, most, after)
        figures.info("sockets %.1f MiB; %d descriptors, then %d", sockets, fds, after_fds)
        assert ghealth.process.poll() is None
        assert list(late_or_wrong(row, callers, began, ended, slack)) == []
        assert after <= before + BACK
        assert after_fds <= fds + FDS_NEAR
        with attackers(names, ghealth.port, 3 * processes.TIMEOUT):
            await asyncio.sleep(2)
            began = time.monotonic()
            code = await asyncio.to_thread(ghealth.ended_by, signal.SIGTERM)
            took = time.monotonic() - began
        assert code == 0
        assert took <= DRAIN_DELAY + SHUTDOWN_GRACE + slack * DRAIN_MARGIN
        assert [line for line in ghealth.rest() if line.get("level", "error") == "error"] == []


def test_dropped_calls_leave_no_memory(stage: str, pytestconfig: pytest.Config) -> None:
    """Calls that are dropped at a stage leave no native memory in use."""
    calls = SHORT_DROPS if pytestconfig.getoption("short") else DROPS
    metered = (sys.executable, "-m", "tests.flood.metered")
    with Agent() as gateway, processes.server(*metered, PROBE_URL=gateway.url) as ghealth:
        gateway.delay = SLOW if stage == "probe" else 0.0

        def drop(count: int) -> tuple[int, float]:
            made = dropping(stage, count)(ghealth.port, time.monotonic() + DROPS_LIMIT)
            time.sleep(SLOW + 1)
            ghealth.process.send_signal(signal.SIGUSR2)
            return made, ghealth.next("metered")["bytes"] / MIB

        _, before = drop(3200)  # for memory that is allocated only once
        made, after = drop(calls)
    figures.info("%d calls: %+.2f MiB native", made, after - before)
    assert after - before <= GROWTH + (made * LEAK / MIB if stage == "window" else 0)

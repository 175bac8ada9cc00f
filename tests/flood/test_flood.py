"""ghealth in a memory control group with the limit of deploy/, while it is flooded: `make flood`.

Each row of `rows` runs against a new ghealth. Meanwhile an ALB and a kubelet check, each time on a
new connection.
"""

import asyncio
import contextlib
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import pytest

from tests.flood import honest
from tests.flood.attacks import drop
from tests.flood.rows import ROWS, SLOW, Row
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
SHORT_SECONDS, SHORT_DROPS = 3.0, 3000
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
    finally:
        for process in started:
            process.kill()
            process.wait()


def descriptors(ghealth: processes.Server) -> int:
    with contextlib.suppress(OSError):
        return len(list(Path(f"/proc/{ghealth.process.pid}/fd").iterdir()))
    return 0


async def flood(row: Row, names: Sequence[str], seconds: float, slack: float) -> list[str]:
    """Run attackers against a new ghealth, log the measurements and return the broken bounds.

    Args:
        row: What is expected during the flood.
        names: The rows whose attackers run.
        seconds: The duration of the flood.
        slack: How many times longer answers and the end may take.
    """
    callers, over = honest.callers(), asyncio.Event()
    times = {"DRAIN_DELAY": str(DRAIN_DELAY), "SHUTDOWN_GRACE": str(SHUTDOWN_GRACE)}
    with (
        Agent() as gateway,
        processes.control_group("memory", LIMITS) as memory,
        processes.server(*memory.prefix, PROBE_URL=gateway.url, **times) as ghealth,
    ):
        gateway.delay = SLOW if row.slow else 0.0
        pid = ghealth.process.pid

        def is_running() -> bool:
            return ghealth.process.poll() is None

        asking = [asyncio.create_task(one.ask(ghealth.port, pid, over)) for one in callers]
        await asyncio.sleep(1.5)
        before, fds = memory.anonymous() / MIB, descriptors(ghealth)
        began, most_fds = time.monotonic(), fds
        with attackers(names, ghealth.port, seconds):
            while time.monotonic() < began + seconds and is_running():
                most_fds = max(most_fds, descriptors(ghealth))
                await asyncio.sleep(0.1)
        ended = time.monotonic()
        if is_running():
            await asyncio.sleep(RECOVERY)
        while is_running() and time.monotonic() < ended + RECOVERY + SETTLING:
            after, after_fds = memory.anonymous() / MIB, descriptors(ghealth)
            if after <= before + BACK and after_fds <= fds + FDS_NEAR:
                break
            await asyncio.sleep(0.2)
        await asyncio.sleep(0.5)
        over.set()
        await asyncio.gather(*asking)
        if not is_running():
            return [f"ended after {ended - began:.1f} s, status {ghealth.process.returncode}"]
        figures.info(
            "%.1f MiB before, %.1f at most, %.1f after, sockets %.1f; descriptors %d, %d, %d",
            before,
            memory.number("memory.max_usage_in_bytes", "memory.peak") / MIB,
            after,
            memory.number("memory.kmem.tcp.max_usage_in_bytes") / MIB,
            *(fds, most_fds, after_fds),
        )
        broken = [*late_or_wrong(row, callers, began, ended, slack)]
        if after > before + BACK:
            broken.append(f"{after:.0f} MiB stay")
        if after_fds > fds + FDS_NEAR:
            broken.append(f"{after_fds} descriptors stay")
        with attackers(names, ghealth.port, 3 * processes.TIMEOUT):
            await asyncio.sleep(2)
            began = time.monotonic()
            code = await asyncio.to_thread(ghealth.ended_by, signal.SIGTERM)
            took = time.monotonic() - began
        if code or took > DRAIN_DELAY + SHUTDOWN_GRACE + slack * DRAIN_MARGIN:
            broken.append(f"exit status {code} after {took:.1f} s")
        bad = [line for line in ghealth.rest() if line.get("level", "error") == "error"]
        return broken + [f"log: {str(line)[:200]}" for line in bad[:3]]


def late_or_wrong(
    row: Row, callers: Sequence[honest.Caller], began: float, ended: float, slack: float
) -> Iterator[str]:
    """Compare the honest callers' answers with the bounds."""
    for caller in callers:
        bound = slack * (WITHOUT_DESCRIPTORS if row.descriptors else IN_TIME)
        if row.slow and caller.name == "ALB":
            bound += SLOW
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
    broken = await flood(row, [row.name] * row.processes, seconds, SLACK if is_short else 1.0)
    assert broken == []


async def test_all_floods_at_once(pytestconfig: pytest.Config) -> None:
    """With one attacker of each row at once, answers come again after the flood."""
    mix = Row("mix", ROWS[0].attack, processor=True, descriptors=True)
    names = [row.name for row in ROWS]
    assert await flood(mix, names, pytestconfig.getoption("mix"), 1.0) == []


def native(ghealth: processes.Server, meter: Path) -> float:
    """Return the native memory in use now, in MiB."""
    meter.unlink(missing_ok=True)
    os.kill(ghealth.process.pid, signal.SIGUSR2)
    end = time.monotonic() + processes.TIMEOUT
    while not meter.exists() and time.monotonic() < end:
        time.sleep(0.01)
    return int(meter.read_text()) / MIB


def test_dropped_calls_leave_no_memory(
    stage: str, pytestconfig: pytest.Config, tmp_path: Path
) -> None:
    """Calls that are dropped at a stage leave no native memory in use."""
    meter = tmp_path / "meter"
    metered = (sys.executable, "-m", "tests.flood.metered", str(meter))
    is_short = pytestconfig.getoption("short")
    count = SHORT_DROPS if is_short else pytestconfig.getoption("drops")
    with Agent() as gateway, processes.server(*metered, PROBE_URL=gateway.url) as ghealth:
        gateway.delay = SLOW if stage == "probe" else 0.0
        drop(stage, ghealth.port, 3200)  # for memory that is allocated only once
        time.sleep(SLOW + 1)
        before = native(ghealth, meter)
        made = drop(stage, ghealth.port, count)
        time.sleep(SLOW + 1)
        grown = native(ghealth, meter) - before
    figures.info("%d calls: %+.2f MiB native", made, grown)
    assert grown <= GROWTH + (made * LEAK / MIB if stage == "window" else 0)

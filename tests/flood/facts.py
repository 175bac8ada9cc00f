"""Checks without a row in the table: no memory growth, no endless shutdown."""

import contextlib
import os
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tests.flood import attacks, control_group, house
from tests.flood.rows import SLOW
from tests.support import frames
from tests.support.gateway import Agent

MIB: Final = 1 << 20
GROWTH: Final = 2.0
"""MiB that 100,000 dropped calls may add to the native memory in use."""
LEAK: Final = 160
"""Bytes that grpcio may lose of an answer whose caller resets it while it waits for a window."""
LONG_GRACE: Final = 3600
"""Seconds of a grace that the end must not use up."""
ENDS_WITHIN: Final = 5.0
"""Seconds that the end may take in addition to the drain delay."""


@contextlib.contextmanager
def metered(gateway: Agent) -> Iterator[tuple[house.Ghealth, Path]]:
    """Run ghealth with a meter; yield it, and the file that has the native memory in use."""
    with (
        tempfile.TemporaryDirectory() as directory,
        control_group.group(1024) as group,
        house.ghealth(
            group,
            {"PROBE_URL": gateway.url},
            ("-m", "tests.flood.metered", f"{directory}/meter"),
        ) as ghealth,
    ):
        yield ghealth, Path(directory) / "meter"


def native(ghealth: house.Ghealth, meter: Path) -> float:
    """Return the native memory in use now, in MiB."""
    meter.unlink(missing_ok=True)
    os.kill(ghealth.process.pid, signal.SIGUSR2)
    end = time.monotonic() + house.PATIENCE
    while not meter.exists() and time.monotonic() < end:
        time.sleep(0.01)
    return int(meter.read_text()) / MIB


def nothing_grows(stage: str, count: int) -> tuple[str, str | None]:
    """Drop calls at a stage, and compare the native memory in use before and after.

    Args:
        stage: One of `attacks.STAGES`.
        count: The number of calls.

    Returns:
        The measurements, and the broken bound, None if it holds.
    """
    with Agent() as gateway, metered(gateway) as (ghealth, meter):
        gateway.delay = SLOW if stage == "probe" else 0.0
        attacks.drop(stage, ghealth.port, 3200)  # for memory that is allocated only once
        time.sleep(SLOW + 1)
        before, resident = native(ghealth, meter), ghealth.usage
        made = attacks.drop(stage, ghealth.port, count)
        time.sleep(SLOW + 1)
        grown = native(ghealth, meter) - before
        figures = f"{made} calls: {grown:+.2f} MiB native, {ghealth.usage - resident:+.1f} in all"
    bound = GROWTH + (made * LEAK / MIB if stage == "window" else 0)
    return figures, f"{grown:.1f} MiB grown" if grown > bound else None


def open_streams_do_not_hold_the_end() -> tuple[str, str | None]:
    """Check that open streams do not delay the end, although the grace is an hour."""
    with (
        Agent() as gateway,
        control_group.group(128) as group,
        house.ghealth(
            group, {"PROBE_URL": gateway.url, "SHUTDOWN_GRACE": str(LONG_GRACE)}
        ) as ghealth,
    ):
        line = attacks.Line(ghealth.port)
        reflection = frames.block(frames.REFLECTION)
        line.send(frames.call(reflection, 1, None, end=False))
        line.send(frames.call(attacks.WATCH, 3, end=True))
        time.sleep(1)
        took = ghealth.terminated()
        line.close()
    broken = took > house.DRAIN_DELAY + ENDS_WITHIN
    return f"SHUTDOWN_GRACE={LONG_GRACE}: {took:.1f} s", f"{took:.0f} s" if broken else None

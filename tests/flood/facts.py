"""What must hold beside the table: nothing grows, no late answer, no endless shutdown."""

import contextlib
import os
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tests.flood import attacks, control_group, frames, honest, house
from tests.flood.frames import Kind
from tests.flood.gateway import SLOW, Gateway

MIB: Final = 1 << 20
GROWTH: Final = 2.0
"""MiB of native memory in use that 100,000 dropped calls may add."""
LATE: Final = 10.0
"""Seconds after the gateway fell sick in which no caller may be told that it serves."""
LONG_GRACE: Final = 3600
ENDS_WITHIN: Final = 5.0


@contextlib.contextmanager
def metered(gateway: Gateway) -> Iterator[tuple[house.Ghealth, Path]]:
    """Run a ghealth that writes its native memory in use to a file when it gets SIGUSR2."""
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
    """MiB of native memory in use now."""
    meter.unlink(missing_ok=True)
    os.kill(ghealth.process.pid, signal.SIGUSR2)
    end = time.monotonic() + house.PATIENCE
    while not meter.exists() and time.monotonic() < end:
        time.sleep(0.01)
    return int(meter.read_text()) / MIB


def nothing_grows(stage: str, count: int) -> tuple[str, str | None]:
    """Drop calls at a stage and compare the native memory in use before and after.

    Returns:
        The figures, and which bound is broken.
    """
    with Gateway() as gateway, metered(gateway) as (ghealth, meter):
        gateway.delay = SLOW if stage == "probe" else 0.0
        attacks.drop(stage, ghealth.port, 3200)  # what is made once has been made
        time.sleep(SLOW + 1)
        before, resident = native(ghealth, meter), ghealth.usage
        made = attacks.drop(stage, ghealth.port, count)
        time.sleep(SLOW + 1)
        grown = native(ghealth, meter) - before
        figures = f"{made} calls: {grown:+.2f} MiB native, {ghealth.usage - resident:+.1f} in all"
    return figures, f"{grown:.1f} MiB grown" if grown > GROWTH else None


def no_late_answer() -> tuple[str, str | None]:
    """A caller with a window of 0 opens it long after the gateway fell sick."""
    with (
        Gateway() as gateway,
        control_group.group(128) as group,
        house.ghealth(group, {"PROBE_URL": gateway.url}) as ghealth,
    ):
        line = attacks.Line(ghealth.port, 0)
        line.send(frames.call(attacks.CHECK, 1, end=True))
        time.sleep(1)
        gateway.ready = False
        time.sleep(LATE)
        told = b""
        with contextlib.suppress(OSError):
            told = line.drained()
            line.send(frames.frame(Kind.WINDOW_UPDATE, (100).to_bytes(4, "big"), stream=1))
            time.sleep(0.5)
            told += line.drained()
        served = honest.SERVING in told
    figures = f"{LATE:g} s after the gateway fell sick: {'SERVING' if served else 'not serving'}"
    return figures, "a late answer" if served else None


def open_streams_do_not_hold_the_end() -> tuple[str, str | None]:
    """SIGTERM with an open reflection stream, an open Watch and a grace of an hour."""
    with (
        Gateway() as gateway,
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

"""ghealth while untrusted clients send broken and hostile HTTP/2: all others are answered."""

import asyncio
import logging
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from random import Random

import pytest

from tests.flood.bursts import BURSTS, UNREAD_WATCH
from tests.support import frames, processes, wire
from tests.support.gateway import SICK, Agent
from tests.support.stopwatch import Stopwatch

figures = logging.getLogger(__name__)
"""Shown by `pytest --log-cli-level=info`."""

ROUNDS = 15
IN_TIME = 1.0
DESCRIPTORS, CONNECTIONS, SECONDS = 128, 1000, 10.0
MOST_MEMORY = 40
"""MiB that an attack may leave in use."""

SERVING = b"\0\0\0\0\2\x08\1"
SICK_SERVICE = b"\0\0\0\0\6\x0a\4sick"
REFLECTION = frames.call(frames.block(frames.REFLECTION), 3, None, end=False)


@contextmanager
def running(*prefix: str) -> Iterator[processes.Server]:
    with Agent() as well, Agent() as sick:
        sick.state = SICK
        services = f'{{"sick": "{sick.url}"}}'
        with processes.server(
            *prefix, PROBE_URL=well.url, SERVICES=services, CACHE_TTL="0"
        ) as server:
            yield server


@pytest.fixture(scope="module")
def ghealth() -> Iterator[processes.Server]:
    with running() as server:
        yield server


async def answers_others(ghealth: processes.Server) -> Stopwatch:
    """Assert that another caller gets the correct status of both services, in time."""
    taking = Stopwatch(ghealth.process.pid)
    well, sick = await asyncio.gather(
        wire.call(ghealth.port, wire.EMPTY_MESSAGE), wire.call(ghealth.port, SICK_SERVICE)
    )
    assert taking.seconds < IN_TIME
    assert (well.code, well.data) == (0, SERVING)
    assert (sick.code, sick.data) == (14, b"")
    return taking


def descriptors(ghealth: processes.Server) -> int:
    return len(list(Path(f"/proc/{ghealth.process.pid}/fd").iterdir()))


def resident(ghealth: processes.Server) -> float:
    """Return its memory, in MiB."""
    pages = int(Path(f"/proc/{ghealth.process.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


async def comes_back_to(fewest: int, ghealth: processes.Server) -> None:
    """Wait until no descriptor is open that was not before."""
    async with asyncio.timeout(processes.TIMEOUT):
        while descriptors(ghealth) > fewest:  # noqa: ASYNC110 - another process has no events
            await asyncio.sleep(0.01)


async def send(ghealth: processes.Server, data: bytes) -> asyncio.StreamWriter:
    """Send data on a separate connection, which stays open."""
    _, writer = await asyncio.open_connection("127.0.0.1", ghealth.port)
    writer.write(data)
    return writer


async def attack(ghealth: processes.Server, data: bytes) -> None:
    """Send data, and disconnect three seconds later."""
    with suppress(OSError):  # refused, or cut
        writer = await send(ghealth, data)
        try:
            await asyncio.sleep(3)
        finally:
            writer.transport.abort()


@pytest.mark.parametrize("family", BURSTS)
async def test_nonsense_keeps_nobody_else_from_an_answer(
    ghealth: processes.Server, family: str
) -> None:
    """After each burst others get the correct answer within 1 s, and no connection is left."""
    await answers_others(ghealth)
    before = descriptors(ghealth)
    for number in range(ROUNDS):
        writer = await send(ghealth, BURSTS[family](Random(f"{family} {number}")))
        await answers_others(ghealth)
        writer.transport.abort()
    await comes_back_to(before, ghealth)
    assert ghealth.process.poll() is None


async def test_everyone_else_is_answered_during_an_attack() -> None:
    """With 128 descriptors and 1,000 attackers in 10 s, each Check is right and in time.

    Afterwards nothing of them is left, and no bug is in the log.
    """
    chance = Random(1)
    with running(*processes.limiting(f"-n {DESCRIPTORS}")) as ghealth:
        await answers_others(ghealth)
        before, memory = descriptors(ghealth), resident(ghealth)
        taken: list[Stopwatch] = []

        async def asks() -> None:
            end = time.monotonic() + SECONDS
            while time.monotonic() < end:
                taken.append(await answers_others(ghealth))
                await asyncio.sleep(0.1)

        async with asyncio.TaskGroup() as group:
            group.create_task(asks())
            for _ in range(CONNECTIONS):
                burst = chance.choice(list(BURSTS.values()))(chance)
                group.create_task(attack(ghealth, burst))
                await asyncio.sleep(SECONDS / CONNECTIONS)
        await comes_back_to(before + 2, ghealth)
        figures.info("%d answers, %.0f MiB after %.0f", len(taken), resident(ghealth), memory)
        assert resident(ghealth) < memory + MOST_MEMORY
        assert ghealth.ended_by(signal.SIGINT) == 0
        assert [line for line in ghealth.rest() if line["level"] == "error"] == []


async def test_watchers_that_do_not_read_do_not_lengthen_the_end() -> None:
    """Fifty clients that never read a watch or reflection do not delay the end after a drain."""
    times = {"DRAIN_DELAY": "0.2", "SHUTDOWN_GRACE": "50", "WATCH_INTERVAL": "0.01"}
    with Agent() as agent, processes.server(PROBE_URL=agent.url, **times) as ghealth:
        attacks = [await send(ghealth, UNREAD_WATCH + REFLECTION) for _ in range(50)]
        together = asyncio.Barrier(2)
        connections = [wire.watching(ghealth.port, 24, together=together) for _ in range(2)]
        await asyncio.gather(*connections)
        started = time.monotonic()
        assert await asyncio.to_thread(ghealth.ended_by, signal.SIGTERM) == 0
        assert time.monotonic() - started < 20
        for writer in attacks:
            writer.transport.abort()

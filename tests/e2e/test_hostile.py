"""ghealth under attack by untrusted clients, with few descriptors: all others are answered."""

import asyncio
import logging
import os
import random
import signal
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import h2.config
import h2.connection
import pytest

from tests.support import processes, wire
from tests.support.gateway import gateway
from tests.support.stopwatch import Stopwatch

figures = logging.getLogger(__name__)
"""Shown by `pytest --log-cli-level=info`."""

DESCRIPTORS = 128
CONNECTIONS, SECONDS = 1000, 10.0
IN_TIME = 1.0
CALM = 0.1

Reader: TypeAlias = asyncio.StreamReader
Writer: TypeAlias = asyncio.StreamWriter
Attack = Callable[[Reader, Writer], Awaitable[None]]

HEADERS = [
    (":method", "POST"),
    (":scheme", "http"),
    (":path", wire.CHECK),
    (":authority", "untrusted"),
    ("content-type", "application/grpc"),
    ("te", "trailers"),
]
WATCH_HEADERS = [
    (name, "/grpc.health.v1.Health/Watch" if name == ":path" else value) for name, value in HEADERS
]


def connected() -> h2.connection.H2Connection:
    config = h2.config.H2Configuration(validate_outbound_headers=False)
    connection = h2.connection.H2Connection(config)
    connection.initiate_connection()
    return connection


async def says_nothing(reader: Reader, _: Writer) -> None:
    await reader.read()


async def stops_half_way(reader: Reader, writer: Writer) -> None:
    writer.write(b"PRI * HTTP/2.0\r\n")
    await reader.read()


async def sends_garbage(reader: Reader, writer: Writer) -> None:
    writer.write(b"\x16\x03\x01" + bytes(range(256)) * 8)
    await reader.read()


async def speaks_http1(reader: Reader, writer: Writer) -> None:
    writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
    await reader.read()


async def vanishes_in_mid_call(reader: Reader, writer: Writer) -> None:
    connection = connected()
    connection.send_headers(1, HEADERS)
    writer.write(connection.data_to_send())
    await reader.read(1)


async def resets_rapidly(reader: Reader, writer: Writer) -> None:
    connection = connected()
    for stream in range(1, 200, 2):
        connection.send_headers(stream, HEADERS)
        connection.reset_stream(stream)
    writer.write(connection.data_to_send())
    await reader.read(1)


async def floods_headers(reader: Reader, writer: Writer) -> None:
    connection = connected()
    connection.send_headers(1, [*HEADERS, *((f"x-{n}", "y" * 500) for n in range(60))])
    writer.write(connection.data_to_send())
    await reader.read()


async def sends_too_much(reader: Reader, writer: Writer) -> None:
    connection = connected()
    connection.send_headers(1, HEADERS)
    connection.send_data(1, b"\0\0\xff\xff\xff" + b"x" * 16_000)
    writer.write(connection.data_to_send())
    await reader.read()


async def watches_without_reading(reader: Reader, writer: Writer) -> None:
    connection = connected()
    connection.send_headers(1, WATCH_HEADERS)
    connection.send_data(1, wire.EMPTY_MESSAGE, end_stream=True)
    writer.write(connection.data_to_send())
    await reader.read(1)


ATTACKS: tuple[Attack, ...] = (
    says_nothing,
    stops_half_way,
    sends_garbage,
    speaks_http1,
    vanishes_in_mid_call,
    resets_rapidly,
    floods_headers,
    sends_too_much,
    watches_without_reading,
)


@dataclass
class State:
    """The resources of a process.

    Args:
        descriptors: Open ones.
        resident: Memory, in MiB.
    """

    descriptors: int
    resident: float


def state_of(pid: int) -> State:
    with open(f"/proc/{pid}/statm") as statm:  # noqa: PTH123
        pages = int(statm.read().split()[1])
    descriptors = len(os.listdir(f"/proc/{pid}/fd"))  # noqa: PTH208
    return State(descriptors, pages * os.sysconf("SC_PAGE_SIZE") / 2**20)


async def attack(port: int, how: Attack) -> None:
    """Attack on a separate connection, for three seconds at most, and disconnect."""
    try:
        async with asyncio.timeout(3):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                await how(reader, writer)
            finally:
                writer.transport.abort()
    except (OSError, TimeoutError):
        pass


class Took(NamedTuple):
    """The time of one answer: the part that counts, and all of it."""

    seconds: float
    on_the_wall: float


async def asks_until(end: float, ghealth: processes.Server) -> list[Took]:
    """Check again and again, each time on a new connection; return how long the answers took."""
    took: list[Took] = []
    while not took or time.monotonic() < end:
        taking = Stopwatch(ghealth.process.pid)
        reply = await wire.call(ghealth.port, wire.EMPTY_MESSAGE)
        assert (reply.code, reply.data) == (0, b"\0\0\0\0\2\x08\1")
        took.append(Took(taking.seconds, taking.on_the_wall))
        await asyncio.sleep(CALM)
    return took


async def is_over(pid: int, before: State) -> bool:
    """Wait until a process has closed the attackers' descriptors."""
    for _ in range(int(processes.TIMEOUT / CALM)):
        if state_of(pid).descriptors <= before.descriptors + 2:
            return True
        await asyncio.sleep(CALM)
    return False


@pytest.fixture
def attacked() -> Iterator[processes.Server]:
    limited = ("sh", "-c", f'ulimit -n {DESCRIPTORS} && exec "$0" "$@"')
    with gateway() as (envoy, _), processes.server(*limited, PROBE_URL=envoy.url) as ghealth:
        yield ghealth


async def test_everyone_else_is_answered_during_an_attack(attacked: processes.Server) -> None:
    """With 128 descriptors and 1,000 attackers in 10 s, each Check is right and in time."""
    chance = random.Random(1)
    await asks_until(time.monotonic(), attacked)
    before = state_of(attacked.process.pid)
    asking = asyncio.create_task(asks_until(time.monotonic() + SECONDS, attacked))
    attacks = []
    for _ in range(CONNECTIONS):
        attacks.append(asyncio.create_task(attack(attacked.port, chance.choice(ATTACKS))))
        await asyncio.sleep(SECONDS / CONNECTIONS)
    took = await asking
    await asyncio.gather(*attacks)
    assert await is_over(attacked.process.pid, before)
    after = state_of(attacked.process.pid)
    figures.info("%d answers, the longest in %.3f s", len(took), max(t.on_the_wall for t in took))
    figures.info("before %s, after %s", before, after)
    assert max(answer.seconds for answer in took) < IN_TIME
    assert after.resident < before.resident + 40


@pytest.mark.parametrize("how", ATTACKS, ids=lambda how: how.__name__)
async def test_one_kind_of_attacker_at_a_time(attacked: processes.Server, how: Attack) -> None:
    """With thirty of a kind at once, every caller gets the correct answer, and nothing is left."""
    await wire.call(attacked.port, wire.EMPTY_MESSAGE)
    before = state_of(attacked.process.pid)
    attacks = [asyncio.create_task(attack(attacked.port, how)) for _ in range(30)]
    took = await asks_until(time.monotonic() + 1, attacked)
    await asyncio.gather(*attacks)
    assert await is_over(attacked.process.pid, before)
    figures.info("%d answers, the longest in %.3f s", len(took), max(t.on_the_wall for t in took))
    figures.info("before %s, after %s", before, state_of(attacked.process.pid))
    assert attacked.process.poll() is None


async def test_watchers_that_do_not_read_do_not_lengthen_the_end() -> None:
    """Fifty watchers that never read do not delay the end after a drain."""
    with (
        gateway() as (envoy, _),
        processes.server(
            PROBE_URL=envoy.url, DRAIN_DELAY="0.2", SHUTDOWN_GRACE="50", WATCH_INTERVAL="0.01"
        ) as ghealth,
    ):
        attacks = [
            asyncio.create_task(attack(ghealth.port, watches_without_reading)) for _ in range(50)
        ]
        together = asyncio.Barrier(2)
        connections = [wire.watching(ghealth.port, 24, together=together) for _ in range(2)]
        await asyncio.gather(*connections)
        started = time.monotonic()
        assert await asyncio.to_thread(ghealth.ended_by, signal.SIGTERM) == 0
        assert time.monotonic() - started < 20
        await asyncio.gather(*attacks)

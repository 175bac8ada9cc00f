"""What untrusted clients may send: bursts of broken HTTP/2, each followed by another's Check.

Every burst depends only on the name of its family and its number, so a failure repeats. The
burst's connection stays open during the Check: it must not affect others.
"""

import asyncio
import signal
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

import h2.config
import h2.connection
import pytest

from tests.support import processes, wire
from tests.support.frames import PREFACE, frame
from tests.support.gateway import SICK, Agent
from tests.support.stopwatch import Stopwatch

ROUNDS = 15
IN_TIME = 1.0

SERVING = b"\0\0\0\0\2\x08\1"
SICK_SERVICE = b"\0\0\0\0\6\x0a\4sick"

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE = range(6)
PING, GOAWAY, WINDOW_UPDATE, CONTINUATION, UNKNOWN = range(6, 11)
END_STREAM, END_HEADERS, PADDED = 0x1, 0x4, 0x8


START = PREFACE + frame(SETTINGS)


def request(*streams: int, ends: bool = True, path: str = wire.CHECK) -> bytes:
    """Return the start of a connection with valid calls, with or without a message."""
    connection = h2.connection.H2Connection(
        h2.config.H2Configuration(validate_outbound_headers=False)
    )
    connection.initiate_connection()
    headers = {":method": "POST", ":scheme": "http", ":path": path, ":authority": "localhost"}
    headers |= {"content-type": "application/grpc", "te": "trailers"}
    for stream in streams:
        connection.send_headers(stream, list(headers.items()))
        if ends:
            connection.send_data(stream, wire.EMPTY_MESSAGE, end_stream=True)
    return connection.data_to_send()


CALL = request(1)
OPEN_CALL = request(1, ends=False)


# ---- the families of bursts ---------------------------------------------------------------------


def no_preface(rng: Random) -> bytes:
    beginning = rng.choice((b"", b"GET / HTTP/1.1\r\n", b"\x16\x03\x01\x02\x00\x01", PREFACE[:-5]))
    return beginning + rng.randbytes(rng.randrange(2000))


def random_frames(rng: Random) -> bytes:
    frames = [
        frame(
            rng.randrange(12),
            rng.randbytes(rng.randrange(64)),
            stream=rng.randrange(8),
            flags=rng.randrange(256),
        )
        for _ in range(rng.randrange(1, 30))
    ]
    return rng.choice((START, CALL, OPEN_CALL)) + b"".join(frames)


def truncated(rng: Random) -> bytes:
    whole = request(1, 3, 5)
    return whole[: rng.randrange(len(whole))]


def mutated(rng: Random) -> bytes:
    whole = bytearray(request(1, 3, 5))
    for _ in range(rng.randrange(1, 10)):
        whole[rng.randrange(len(PREFACE), len(whole))] = rng.randrange(256)
    return bytes(whole)


def wrong_streams(rng: Random) -> bytes:
    kind, payload = rng.choice(
        (
            (DATA, wire.EMPTY_MESSAGE),
            (HEADERS, b"\x83\x86"),
            (RST_STREAM, b"\0\0\0\x08"),
            (WINDOW_UPDATE, b"\0\0\0\1"),
            (CONTINUATION, b"\x83"),
            (PUSH_PROMISE, b"\0\0\0\2\x83"),
            (SETTINGS, b""),
            (PING, bytes(8)),
            (GOAWAY, bytes(8)),
        )
    )
    streams = rng.choices((0, 1, 2, 3, 99, 2**31 - 1, 2**32 - 1), k=5)
    flags = rng.choice((0, END_STREAM, END_HEADERS, END_STREAM | END_HEADERS))
    return CALL + b"".join(frame(kind, payload, stream=number, flags=flags) for number in streams)


def wrong_lengths(rng: Random) -> bytes:
    kind, stream = rng.randrange(11), rng.randrange(4)
    length = rng.choice((0, 1, 7, 16_385, 2**20, 2**24 - 1))
    return OPEN_CALL + frame(kind, rng.randbytes(rng.randrange(50)), stream=stream, length=length)


def wrong_padding(rng: Random) -> bytes:
    payload = bytes([rng.choice((1, 9, 255))]) + wire.EMPTY_MESSAGE
    return OPEN_CALL + frame(rng.choice((DATA, HEADERS)), payload, stream=1, flags=PADDED)


def bad_hpack(rng: Random) -> bytes:
    block = rng.choice(
        (
            rng.randbytes(rng.randrange(1, 300)),
            b"\x80",  # index 0
            b"\xff" + b"\xff" * 20,  # an index without end
            b"\x3f\xff\xff\xff\xff\x07",  # a dynamic table of gigabytes
            b"\x00\x7f\xff\xff\xff\x07name",  # a name of gigabytes
            b"\x00\x84\xff\xff\xff\xff\x00",  # Huffman code that ends nowhere
            b"\x83" * 1000,  # :method a thousand times
        )
    )
    return START + frame(HEADERS, block, stream=1, flags=END_HEADERS | rng.choice((0, END_STREAM)))


def bad_headers(rng: Random) -> bytes:
    headers = [
        (rng.choice((":path", ":method", "te", "grpc-timeout", "content-type", "X", "")), value)
        for value in rng.choices(
            ("", "POST", "trailers", "9" * 40 + "n", "-1S", "x" * 9000, "\0\r\n"),
            k=rng.randrange(9),
        )
    ]
    connection = h2.connection.H2Connection(
        h2.config.H2Configuration(validate_outbound_headers=False, normalize_outbound_headers=False)
    )
    connection.initiate_connection()
    connection.send_headers(1, [*headers, (":path", wire.CHECK)])
    return connection.data_to_send()


def bad_settings(rng: Random) -> bytes:
    pairs = rng.choices(range(8), k=5), rng.choices((0, 1, 2**14 - 1, 2**31, 2**32 - 1), k=5)
    payload = b"".join(struct.pack(">HI", *pair) for pair in zip(*pairs, strict=True))
    updates = frame(WINDOW_UPDATE, rng.choice((b"\0\0\0\0", b"\x7f\xff\xff\xff")) * 1) * 3
    return CALL + frame(SETTINGS, payload, flags=rng.choice((0, 0, 1))) + updates


def bad_messages(rng: Random) -> bytes:
    body = rng.randbytes(rng.randrange(1, 40))
    right, short, long = len(body), len(body) // 2, rng.choice((2**16, 2**32 - 1))
    prefix = rng.choice(((0, right), (0, right), (0, short), (0, long), (1, right), (255, right)))
    payload = struct.pack(">BI", *prefix) + body
    return OPEN_CALL + frame(DATA, payload, stream=1, flags=rng.choice((0, END_STREAM)))


def half_requests(rng: Random) -> bytes:
    streams = range(1, 2 * rng.randrange(1, 40), 2)
    return request(
        *streams, ends=False, path=rng.choice((wire.CHECK, "/x", "/AWS.ALB/healthcheck"))
    )


def flood(*frames: bytes, start: bytes = START) -> Callable[[Random], bytes]:
    def burst(rng: Random) -> bytes:
        return start + b"".join(rng.choices(frames, k=rng.randrange(500, 3000)))

    return burst


def rapid_resets(rng: Random) -> bytes:
    streams = range(1, 2 * rng.randrange(50, 400), 2)
    calls = request(*streams)
    return calls + b"".join(frame(RST_STREAM, bytes(4), stream=number) for number in streams)


BURSTS: dict[str, Callable[[Random], bytes]] = {
    "no preface": no_preface,
    "random frames": random_frames,
    "truncated": truncated,
    "mutated": mutated,
    "wrong streams": wrong_streams,
    "wrong lengths": wrong_lengths,
    "wrong padding": wrong_padding,
    "bad hpack": bad_hpack,
    "bad headers": bad_headers,
    "bad settings": bad_settings,
    "bad messages": bad_messages,
    "half requests": half_requests,
    "rapid resets": rapid_resets,
    "a flood of pings": flood(frame(PING, bytes(8))),
    "a flood of settings": flood(frame(SETTINGS), frame(SETTINGS, struct.pack(">HI", 4, 1))),
    "a flood of resets": flood(frame(RST_STREAM, bytes(4), stream=1), start=CALL),
    "a flood of priorities": flood(
        frame(PRIORITY, b"\0\0\0\0\xff", stream=1), frame(PRIORITY, b"\0\0\0\1\0", stream=3)
    ),
    "a flood of continuations": flood(
        frame(CONTINUATION, stream=1),
        frame(CONTINUATION, b"\x00\1a\1b" * 9, stream=1),
        start=START + frame(HEADERS, b"\x83", stream=1),
    ),
    "a flood of empty data": flood(frame(DATA, stream=1), start=OPEN_CALL),
    "a flood of unknown frames": flood(frame(UNKNOWN, b"?"), frame(255, b"?", stream=9)),
}


# ---- the server and its other callers -----------------------------------------------------------


@contextmanager
def running() -> Iterator[processes.Server]:
    with Agent() as well, Agent() as sick:
        sick.state = SICK
        url = "http://127.0.0.1:{}/healthz/ready"
        services = f'{{"sick": "{url.format(sick.port)}"}}'
        with processes.server(
            PROBE_URL=url.format(well.port), SERVICES=services, CACHE_TTL="0"
        ) as server:
            yield server


@pytest.fixture(scope="module")
def ghealth() -> Iterator[processes.Server]:
    with running() as server:
        yield server


async def answers_others(ghealth: processes.Server) -> None:
    """Assert that another caller gets the correct status of both services, in time."""
    taking = Stopwatch(ghealth.process.pid)
    well, sick = await asyncio.gather(
        wire.call(ghealth.port, wire.EMPTY_MESSAGE), wire.call(ghealth.port, SICK_SERVICE)
    )
    assert taking.seconds < IN_TIME
    assert (well.code, well.data) == (0, SERVING)
    assert (sick.code, sick.data) == (14, b"")


def descriptors(ghealth: processes.Server) -> int:
    return len(list(Path(f"/proc/{ghealth.process.pid}/fd").iterdir()))


async def comes_back_to(fewest: int, ghealth: processes.Server) -> None:
    """Wait until no descriptor is open that was not before."""
    async with asyncio.timeout(processes.TIMEOUT):
        while descriptors(ghealth) > fewest:  # noqa: ASYNC110 - another process has no events
            await asyncio.sleep(0.01)


async def send(ghealth: processes.Server, family: str, number: int) -> asyncio.StreamWriter:
    """Send a burst on a separate connection, which stays open."""
    _, writer = await asyncio.open_connection("127.0.0.1", ghealth.port)
    writer.write(BURSTS[family](Random(f"{family} {number}")))
    return writer


@pytest.mark.parametrize("family", BURSTS)
async def test_nonsense_keeps_nobody_else_from_an_answer(
    ghealth: processes.Server, family: str
) -> None:
    """After each burst others get the correct answer within 1 s, and no connection is left."""
    await answers_others(ghealth)
    before = descriptors(ghealth)
    for number in range(ROUNDS):
        writer = await send(ghealth, family, number)
        await answers_others(ghealth)
        writer.transport.abort()
    await comes_back_to(before, ghealth)
    assert ghealth.process.poll() is None


async def test_all_kinds_of_nonsense_at_once() -> None:
    """A hundred of them at once: others are answered, nothing is left, no bug is in the log."""
    with running() as ghealth:
        await answers_others(ghealth)
        before = descriptors(ghealth)
        numbers = range(ROUNDS, ROUNDS + 100 // len(BURSTS))
        writers = [await send(ghealth, family, number) for number in numbers for family in BURSTS]
        await answers_others(ghealth)
        for writer in writers:
            writer.transport.abort()
        await comes_back_to(before, ghealth)
        assert ghealth.ended_by(signal.SIGINT) == 0
        assert [line for line in ghealth.rest() if line["level"] == "error"] == []

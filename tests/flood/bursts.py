"""What an untrusted client may send first: families of broken or hostile HTTP/2.

Each burst depends only on its family and its random generator, so a failure repeats. Longer attacks
are in `attacks`.
"""

import struct
from collections.abc import Callable
from random import Random
from typing import Final

from tests.support import frames
from tests.support.frames import END_HEADERS, END_STREAM, PREFACE, Kind, frame

PUSH_PROMISE: Final = 5
PADDED: Final = 0x8
CHUNK: Final = 16_000
"""Bytes of a header block that fit in a frame."""

START: Final = frames.hello()
RESET: Final = bytes(4)


def request(*streams: int, ends: bool = True, path: str = frames.CHECK) -> bytes:
    """Return the start of a connection with valid calls, with or without a message."""
    data = frames.EMPTY_MESSAGE if ends else None
    calls = (frames.call(frames.block(path), stream, data, end=ends) for stream in streams)
    return START + b"".join(calls)


def in_parts(block: bytes, stream: int = 1) -> bytes:
    """Return a header block of any size, in as many frames as it needs."""
    kinds = [Kind.HEADERS, *[Kind.CONTINUATION] * (len(block) // CHUNK)]
    parts = [
        frame(kind, block[at * CHUNK : (at + 1) * CHUNK], stream=stream)
        for at, kind in enumerate(kinds)
    ]
    return b"".join(parts) + frame(Kind.CONTINUATION, stream=stream, flags=END_HEADERS)


CALL: Final = request(1)
OPEN_CALL: Final = request(1, ends=False)


def no_preface(rng: Random) -> bytes:
    http1 = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"
    beginning = rng.choice((b"", http1, b"\x16\x03\x01\x02\x00\x01", PREFACE[:-5]))
    return beginning + rng.randbytes(rng.randrange(2000))


def random_frames(rng: Random) -> bytes:
    made = (
        frame(
            rng.randrange(12),
            rng.randbytes(rng.randrange(64)),
            stream=rng.randrange(8),
            flags=rng.randrange(256),
        )
        for _ in range(rng.randrange(1, 30))
    )
    return rng.choice((START, CALL, OPEN_CALL)) + b"".join(made)


def truncated(rng: Random) -> bytes:
    whole = request(1, 3, 5)
    return whole[: rng.randrange(len(whole))]


def mutated(rng: Random) -> bytes:
    whole = bytearray(request(1, 3, 5))
    for _ in range(rng.randrange(1, 10)):
        whole[rng.randrange(len(PREFACE), len(whole))] = rng.randrange(256)
    return bytes(whole)


def not_utf_8(rng: Random) -> bytes:
    place = rng.choice((b"/grpc", b"Check", b":path", b"AWSALB", b"trailers"))
    return CALL.replace(place, place[:-1] + bytes((rng.randrange(128, 256),)))


def wrong_streams(rng: Random) -> bytes:
    kind, payload = rng.choice(
        (
            (Kind.DATA, frames.EMPTY_MESSAGE),
            (Kind.HEADERS, b"\x83\x86"),
            (Kind.RESET, b"\0\0\0\x08"),
            (Kind.WINDOW_UPDATE, b"\0\0\0\1"),
            (Kind.CONTINUATION, b"\x83"),
            (PUSH_PROMISE, b"\0\0\0\2\x83"),
            (Kind.SETTINGS, b""),
            (Kind.PING, bytes(8)),
            (Kind.GOAWAY, bytes(8)),
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
    payload = bytes([rng.choice((1, 9, 255))]) + frames.EMPTY_MESSAGE
    kind = rng.choice((Kind.DATA, Kind.HEADERS))
    return OPEN_CALL + frame(kind, payload, stream=1, flags=PADDED)


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
    flags = END_HEADERS | rng.choice((0, END_STREAM))
    return START + frame(Kind.HEADERS, block, stream=1, flags=flags)


def bad_headers(rng: Random) -> bytes:
    names = (":path", ":method", "te", "grpc-timeout", "content-type", "X", "")
    values = ("", "POST", "trailers", "9" * 40 + "n", "-1S", "x" * 9000, "\0\r\n")
    made = (frames.field(rng.choice(names), rng.choice(values)) for _ in range(rng.randrange(9)))
    return START + in_parts(b"".join(made) + frames.field(":path", frames.CHECK))


def bad_settings(rng: Random) -> bytes:
    pairs = rng.choices(range(8), k=5), rng.choices((0, 1, 2**14 - 1, 2**31, 2**32 - 1), k=5)
    payload = b"".join(struct.pack(">HI", *pair) for pair in zip(*pairs, strict=True))
    updates = frame(Kind.WINDOW_UPDATE, rng.choice((b"\0\0\0\0", b"\x7f\xff\xff\xff"))) * 3
    return CALL + frame(Kind.SETTINGS, payload, flags=rng.choice((0, 0, 1))) + updates


def bad_messages(rng: Random) -> bytes:
    body = rng.randbytes(rng.randrange(1, 40))
    right, short, long = len(body), len(body) // 2, rng.choice((2**16, 2**32 - 1))
    prefix = rng.choice(((0, right), (0, right), (0, short), (0, long), (1, right), (255, right)))
    payload = struct.pack(">BI", *prefix) + body
    flags = rng.choice((0, END_STREAM))
    return OPEN_CALL + frame(Kind.DATA, payload, stream=1, flags=flags)


def half_requests(rng: Random) -> bytes:
    path = rng.choice((frames.CHECK, "/x", "/AWS.ALB/healthcheck"))
    return request(*range(1, 2 * rng.randrange(1, 40), 2), ends=False, path=path)


def rapid_resets(rng: Random) -> bytes:
    streams = range(1, 2 * rng.randrange(50, 400), 2)
    return request(*streams) + b"".join(map(frames.reset, streams))


def flood(*repeated: bytes, start: bytes = START) -> Callable[[Random], bytes]:
    return lambda rng: start + b"".join(rng.choices(repeated, k=rng.randrange(500, 3000)))


UNREAD_WATCH: Final = frames.hello(0) + frames.call(frames.block(frames.WATCH), 1, end=True)
"""A watch whose client has no window for the answer."""

_MANY_HEADERS: Final = frames.block(frames.CHECK, [(f"x-{n}", "y" * 500) for n in range(60)])
_TOO_LONG: Final = b"\0\0\xff\xff\xff" + b"x" * CHUNK


BURSTS: Final[dict[str, Callable[[Random], bytes]]] = {
    "silence": lambda _: b"",
    "no preface": no_preface,
    "random frames": random_frames,
    "truncated": truncated,
    "mutated": mutated,
    "not UTF-8": not_utf_8,
    "wrong streams": wrong_streams,
    "wrong lengths": wrong_lengths,
    "wrong padding": wrong_padding,
    "bad hpack": bad_hpack,
    "bad headers": bad_headers,
    "bad settings": bad_settings,
    "bad messages": bad_messages,
    "many headers": lambda _: START + in_parts(_MANY_HEADERS),
    "a long message": lambda _: OPEN_CALL + frame(Kind.DATA, _TOO_LONG, stream=1),
    "half requests": half_requests,
    "a watch that is not read": lambda _: UNREAD_WATCH,
    "rapid resets": rapid_resets,
    "a flood of pings": flood(frame(Kind.PING, bytes(8))),
    "a flood of settings": flood(START[len(PREFACE) :], frames.settings(1)),
    "a flood of resets": flood(frame(Kind.RESET, RESET, stream=1), start=CALL),
    "a flood of priorities": flood(
        frame(Kind.PRIORITY, b"\0\0\0\0\xff", stream=1),
        frame(Kind.PRIORITY, b"\0\0\0\1\0", stream=3),
    ),
    "a flood of continuations": flood(
        frame(Kind.CONTINUATION, stream=1),
        frame(Kind.CONTINUATION, b"\x00\1a\1b" * 9, stream=1),
        start=START + frame(Kind.HEADERS, b"\x83", stream=1),
    ),
    "a flood of empty data": flood(frame(Kind.DATA, stream=1), start=OPEN_CALL),
    "a flood of unknown frames": flood(frame(10, b"?"), frame(255, b"?", stream=9)),
}

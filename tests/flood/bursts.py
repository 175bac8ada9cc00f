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

PADDED: Final = 0x8
CHUNK: Final = 16_000
"""Bytes of a header block that fit in a frame."""

START: Final = frames.hello()


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
    made = b""
    for _ in range(rng.randrange(1, 30)):
        kind, stream, flags = rng.randrange(12), rng.randrange(8), rng.randrange(256)
        made += frame(kind, rng.randbytes(rng.randrange(64)), stream=stream, flags=flags)
    return rng.choice((START, CALL, OPEN_CALL)) + made


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


_SIZES: Final = (5, 2, 5, 4, 0, 5, 8, 8, 4, 1)
"""Of a right payload, by the kind of the frame."""


def wrong_streams(rng: Random) -> bytes:
    kind = rng.randrange(len(_SIZES))
    payload = rng.choice((b"\0", b"\1", b"\x83")) * _SIZES[kind]
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


UNREAD_WATCH: Final = frames.hello(0) + frames.call(frames.block(frames.WATCH), 1, end=True)
"""A watch whose client has no window for the answer."""

_MANY_HEADERS: Final = frames.block(frames.CHECK, [(f"x-{n}", "y" * 500) for n in range(60)])
_TOO_LONG: Final = b"\0\0\xff\xff\xff" + b"x" * CHUNK

CHECK: Final = frames.block(frames.CHECK)
OPEN_HEADERS: Final = frame(Kind.HEADERS, CHECK, stream=1)
"""Headers that need a CONTINUATION."""
MORE_HEADERS: Final = frame(Kind.CONTINUATION, frames.field("x", "y" * 8000), stream=1)

REPEATED: Final = {
    "unknown-frames": (b"", frame(Kind.UNKNOWN, bytes(91))),
    "priority-frames": (b"", frame(Kind.PRIORITY, b"\0\0\0\3\xff", stream=3)),
    "settings-frames": (b"", frames.settings(65535)),
    "ping-frames": (b"", frame(Kind.PING, bytes(8))),
    "window-frames": (b"", frame(Kind.WINDOW_UPDATE, b"\0\0\0\1")),
    "reset-frames": (frames.call(CHECK, 1, end=True), frames.reset(1)),
    "empty-data-frames": (frames.call(CHECK, 1, None, end=False), frame(Kind.DATA, stream=1)),
    "continuation": (OPEN_HEADERS, MORE_HEADERS),
}
"""What begins a flood of one frame, and the frame."""


def repeated(begin: bytes, unit: bytes) -> Callable[[Random], bytes]:
    return lambda rng: START + begin + unit * (rng.randrange(10_000, 100_000) // len(unit))


_BYTES: Final = (no_preface, truncated, mutated, not_utf_8, rapid_resets)
_FRAMES: Final = (random_frames, wrong_streams, wrong_lengths, wrong_padding, bad_settings)
_CALLS: Final = (bad_hpack, bad_headers, bad_messages, half_requests)

BURSTS: Final[dict[str, Callable[[Random], bytes]]] = {
    **{make.__name__.replace("_", " "): make for make in (*_BYTES, *_FRAMES, *_CALLS)},
    "silence": lambda _: b"",
    "many headers": lambda _: START + in_parts(_MANY_HEADERS),
    "a long message": lambda _: OPEN_CALL + frame(Kind.DATA, _TOO_LONG, stream=1),
    "a watch that is not read": lambda _: UNREAD_WATCH,
    **{f"a flood of {name}": repeated(*flood) for name, flood in REPEATED.items()},
}

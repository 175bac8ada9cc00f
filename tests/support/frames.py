"""HTTP/2 frames from bytes, for clients that break the rules (RFC 9113, RFC 7541)."""

import struct
from collections.abc import Iterable, Iterator
from enum import IntEnum
from typing import Final

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEAD: Final = 9
"""Bytes of a frame's header."""
EMPTY_MESSAGE: Final = b"\0\0\0\0\0"
CHECK: Final = "/grpc.health.v1.Health/Check"
WATCH: Final = "/grpc.health.v1.Health/Watch"
REFLECTION: Final = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"

END_STREAM, ACK, END_HEADERS = 0x1, 0x1, 0x4
WINDOW: Final = 0x4
"""The identifier of SETTINGS_INITIAL_WINDOW_SIZE."""
CANCEL: Final = struct.pack("!I", 8)


class Kind(IntEnum):
    """Frame types."""

    DATA = 0
    HEADERS = 1
    PRIORITY = 2
    RESET = 3
    SETTINGS = 4
    PING = 6
    GOAWAY = 7
    WINDOW_UPDATE = 8
    CONTINUATION = 9
    UNKNOWN = 0xEE


def frame(
    kind: int, payload: bytes = b"", *, stream: int = 0, flags: int = 0, length: int | None = None
) -> bytes:
    """Return a frame, with any length in its header."""
    size = len(payload) if length is None else length
    return struct.pack("!IBI", size << 8 | kind, flags, stream) + payload


def taken(received: bytearray) -> Iterator[tuple[int, int, int, bytes]]:
    """Remove the complete frames from the received bytes: kind, flags, stream and payload."""
    while len(received) >= HEAD:
        end = HEAD + int.from_bytes(received[:3], "big")
        if len(received) < end:
            break
        stream = int.from_bytes(received[5:HEAD], "big")
        kind, flags, payload = received[3], received[4], bytes(received[HEAD:end])
        del received[:end]
        yield kind, flags, stream, payload


def settings(window: int | None = None) -> bytes:
    """Return a SETTINGS frame; the window, in bytes, is what the peer may send on each stream."""
    payload = b"" if window is None else struct.pack("!HI", WINDOW, window)
    return frame(Kind.SETTINGS, payload)


def hello(window: int | None = None) -> bytes:
    """Return the first bytes that a client sends on a connection."""
    return PREFACE + settings(window)


SETTINGS_ACK: Final = frame(Kind.SETTINGS, flags=ACK)


def _integer(value: int, prefix: int) -> bytes:
    """Encode an integer with a prefix of `prefix` bits; the bits before it are 0 (RFC 7541)."""
    most = (1 << prefix) - 1
    if value < most:
        return bytes((value,))
    value -= most
    encoded = bytearray((most,))
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def field(name: str, value: str) -> bytes:
    """Return a header field that is not indexed, so the same bytes are valid on every stream."""
    key, data = name.encode(), value.encode()
    return b"\0" + _integer(len(key), 7) + key + _integer(len(data), 7) + data


def block(path: str, more: Iterable[tuple[str, str]] = (), *, host: str = ":authority") -> bytes:
    """Return the header block of a gRPC call.

    Args:
        path: The path of the method.
        more: Additional header fields.
        host: The name of the field with the server's name: `:authority` or `host`.
    """
    usual = (
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (host, "AWSALB"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    )
    return b"".join(field(name, value) for name, value in (*usual, *more))


LARGE: Final = tuple((f"x-{n}", "y" * 620) for n in range(5))
"""3 KiB of header fields, a little less than the limit."""


def call(headers: bytes, stream: int, data: bytes | None = EMPTY_MESSAGE, *, end: bool) -> bytes:
    """Return the frames of a call.

    Args:
        headers: A header block from `block`.
        stream: The number of the stream, which must be odd.
        data: Sent after the headers; None for nothing.
        end: Whether the request is ended.
    """
    last = END_STREAM if end else 0
    first = END_HEADERS | (last if data is None else 0)
    frames = frame(Kind.HEADERS, headers, stream=stream, flags=first)
    if data is not None:
        frames += frame(Kind.DATA, data, stream=stream, flags=last)
    return frames


def reset(stream: int) -> bytes:
    """Return a RST_STREAM frame, with which a caller cancels a call."""
    return frame(Kind.RESET, CANCEL, stream=stream)

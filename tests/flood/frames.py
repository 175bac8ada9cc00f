"""HTTP/2 frames written by hand, for clients that follow no rules (RFC 9113, RFC 7541)."""

import struct
from collections.abc import Iterable
from enum import IntEnum
from typing import Final

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEAD: Final = 9
"""Bytes before the payload of a frame."""
EMPTY_MESSAGE: Final = b"\0\0\0\0\0"
CHECK: Final = "/grpc.health.v1.Health/Check"
WATCH: Final = "/grpc.health.v1.Health/Watch"
REFLECTION: Final = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"

END_STREAM, ACK, END_HEADERS = 0x1, 0x1, 0x4
WINDOW: Final = 0x4
"""The setting SETTINGS_INITIAL_WINDOW_SIZE."""
CANCEL: Final = struct.pack("!I", 8)


class Kind(IntEnum):
    """Types of frames."""

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


def frame(kind: Kind, payload: bytes = b"", *, stream: int = 0, flags: int = 0) -> bytes:
    """One frame."""
    return struct.pack("!IBI", len(payload) << 8 | kind, flags, stream) + payload


def settings(window: int | None = None) -> bytes:
    """A SETTINGS frame, with the window in which the peer may answer on each stream."""
    payload = b"" if window is None else struct.pack("!HI", WINDOW, window)
    return frame(Kind.SETTINGS, payload)


def hello(window: int | None = None) -> bytes:
    """The start of a connection."""
    return PREFACE + settings(window)


SETTINGS_ACK: Final = frame(Kind.SETTINGS, flags=ACK)


def _integer(value: int, prefix: int) -> bytes:
    """Encode an integer with a prefix of so many bits, the first bits zero."""
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
    """A header field that enters no table: the same bytes fit any stream."""
    key, data = name.encode(), value.encode()
    return b"\0" + _integer(len(key), 7) + key + _integer(len(data), 7) + data


def block(path: str, more: Iterable[tuple[str, str]] = (), *, host: str = ":authority") -> bytes:
    """The header block of a gRPC call.

    Args:
        path: The method.
        more: Fields beside the usual ones.
        host: The name of the field with the server's name.
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
"""Three KiB of header fields, just below the limit."""


def call(headers: bytes, stream: int, data: bytes | None = EMPTY_MESSAGE, *, end: bool) -> bytes:
    """The frames of one call.

    Args:
        headers: From `block`.
        stream: Its odd number.
        data: Sent after the headers; None for nothing.
        end: Whether the request ends.
    """
    last = END_STREAM if end else 0
    first = END_HEADERS | (last if data is None else 0)
    frames = frame(Kind.HEADERS, headers, stream=stream, flags=first)
    if data is not None:
        frames += frame(Kind.DATA, data, stream=stream, flags=last)
    return frames


def reset(stream: int) -> bytes:
    """A RST_STREAM frame: the caller cancels a call."""
    return frame(Kind.RESET, CANCEL, stream=stream)

"""Attacks that last: each runs until a time, and all traffic goes to 127.0.0.1."""

import contextlib
import select
import socket
import time
from collections.abc import Callable, Iterator
from typing import Final

from tests.flood import bursts
from tests.support import frames
from tests.support.frames import EMPTY_MESSAGE, Kind

HOST: Final = "127.0.0.1"
SOURCE: Final = "127.0.0.2"
"""The attackers' address. Honest callers have another one, as separate pods do."""
CHUNK: Final = 1 << 18

Attack = Callable[[int, float], None]


def connected(port: int, source: str = SOURCE) -> socket.socket:
    """Connect to the server from an attacker's address."""
    return socket.create_connection((HOST, port), timeout=2, source_address=(source, 0))


class Line:
    """A connection that reads and discards what the server sends.

    Args:
        port: The server's port.
        window: Initial window in bytes: how much the server may send on each stream. None for
            HTTP/2's default.
        source: The client's address.
    """

    def __init__(self, port: int, window: int | None = None, source: str = SOURCE) -> None:
        self._socket = connected(port, source)
        self.fileno, self.close = self._socket.fileno, self._socket.close
        self._next = 1
        self._socket.sendall(frames.hello(window))
        self._socket.recv(CHUNK)
        self._socket.sendall(frames.SETTINGS_ACK)
        self._socket.setblocking(False)
        self._left = b""

    def drain(self) -> None:
        """Discard the received data; raise OSError if the server has closed the connection."""
        with contextlib.suppress(BlockingIOError):
            while self._socket.recv(CHUNK):
                pass
            raise ConnectionResetError("closed by the server")

    def send(self, data: bytes) -> bool:
        """Send as much as the socket accepts and keep the rest; return whether all is sent."""
        self._left += data
        with contextlib.suppress(BlockingIOError):
            while self._left:
                self._left = self._left[self._socket.send(self._left[:CHUNK]) :]
        return not self._left

    def streams(self, count: int) -> range:
        """Return the numbers of new streams; none is returned twice."""
        first, self._next = self._next, self._next + 2 * count
        return range(first, self._next, 2)


@contextlib.contextmanager
def ignoring_refusals() -> Iterator[None]:
    """Continue after the block if the server closes or refuses a connection in it."""
    try:
        yield
    except OSError:
        time.sleep(0.002)


def pour(unit: bytes, *, begin: bytes = b"", rate: int | None = None) -> Attack:
    """Return an attack that repeats the same bytes on one connection.

    Args:
        unit: The complete frames to repeat.
        begin: Frames to send first on each connection.
        rate: Bytes per second; None for as many as the machine can send.
    """
    data = unit * max(1, (rate // 10 if rate else CHUNK) // len(unit))

    def attack(port: int, until: float) -> None:
        while time.monotonic() < until:
            with ignoring_refusals(), contextlib.closing(Line(port)) as line:
                line.send(begin)
                while time.monotonic() < until:
                    select.select([line], [line], [], 0.1)
                    line.drain()
                    if line.send(b""):
                        line.send(data)
                    if rate:
                        time.sleep(0.1)

    return attack


def hold(
    headers: bytes,
    *,
    lines: int,
    streams: int,
    data: bytes | None = EMPTY_MESSAGE,
    end: bool = True,
    window: int | None = 0,
    again: float = 0.5,
    of_each: int | None = None,
) -> Attack:
    """Return an attack that keeps as many calls open as the server allows.

    Args:
        headers: The header block of each call.
        lines: The number of connections.
        streams: The number of calls to open on each connection, once in `again` seconds.
        data: Sent on each call after the headers; None for nothing.
        end: Whether the request is ended.
        window: Initial window in bytes: how much the server may send on each stream. None for
            HTTP/2's default.
        again: Seconds after which new calls are opened and closed connections are replaced.
        of_each: Connections from each address; None for one address.
    """

    def attack(port: int, until: float) -> None:
        held: list[Line | None] = [None] * lines
        while time.monotonic() < until:
            started = time.monotonic()
            for number in range(lines):
                source = f"127.0.2.{1 + number // of_each}" if of_each else SOURCE
                with ignoring_refusals():
                    held[number] = held[number] or Line(port, window, source)
                if (line := held[number]) is None:
                    continue
                try:
                    line.drain()
                    if line.send(b""):
                        calls = (
                            frames.call(headers, stream, data, end=end)
                            for stream in line.streams(streams)
                        )
                        line.send(b"".join(calls))
                except OSError:
                    line.close()
                    held[number] = None
            while time.monotonic() < min(until, started + again):
                for line in filter(None, held):
                    with contextlib.suppress(OSError):
                        line.send(b"")
                time.sleep(0.01)

    return attack


def come_and_go(headers: bytes, *, lines: int, streams: int, wait: float = 0.0) -> Attack:
    """Return an attack that opens calls and resets them.

    Args:
        headers: The header block of each call.
        lines: The number of connections.
        streams: The number of calls to open on a connection between two reads.
        wait: Seconds between a call and its reset; with 0 both are sent at once, and without
            pauses.
    """

    def attack(port: int, until: float) -> None:
        held: dict[int, Line] = {}
        while time.monotonic() < until:
            resets: dict[int, bytes] = {}
            for number in range(lines):
                with ignoring_refusals():
                    if number not in held:
                        held[number] = Line(port)
                    line = held[number]
                    try:
                        line.drain()
                        if not line.send(b""):
                            continue
                        taken = line.streams(streams)
                        calls = [frames.call(headers, stream, end=True) for stream in taken]
                        gone = [frames.reset(stream) for stream in taken]
                        if wait:
                            resets[number] = b"".join(gone)
                            line.send(b"".join(calls))
                        else:
                            line.send(b"".join(map(bytes.__add__, calls, gone)))
                    except OSError:
                        held.pop(number).close()
            time.sleep(wait)
            for number, data in resets.items():
                if number in held:
                    with contextlib.suppress(OSError):
                        held[number].send(data)

    return attack


def reconnect(calls: bytes, *, rate: float | None = None, greets: bool = True) -> Attack:
    """Return an attack that connects, sends the same calls and closes the connection.

    Args:
        calls: The complete frames to send on each connection.
        rate: Connections per second; None for as many as the machine can open.
        greets: Whether it waits for the server's SETTINGS before the calls.
    """

    def attack(port: int, until: float) -> None:
        following = time.monotonic()
        while time.monotonic() < until:
            with ignoring_refusals():
                if greets:
                    with contextlib.closing(Line(port)) as line:
                        line.send(calls)
                else:
                    with connected(port) as sock:
                        sock.sendall(frames.hello() + calls)
            if rate:
                following += 1 / rate
                time.sleep(max(0.0, following - time.monotonic()))

    return attack


def first_flight(data: bytes, *, lines: int, more: bytes = b"") -> Attack:
    """Return an attack that never acknowledges SETTINGS, so that no limit in them holds.

    Args:
        data: Sent on each connection after the preface.
        lines: The number of connections. Those that the server closes are replaced.
        more: Sent again and again after the data.
    """

    def attack(port: int, until: float) -> None:
        left: dict[socket.socket, bytes] = {}
        while time.monotonic() < until:
            with ignoring_refusals():
                while len(left) < lines:
                    new = connected(port)
                    new.setblocking(False)
                    left[new] = frames.hello() + data
            _, ready, _ = select.select([], left, [], 0.1)
            for sock in ready:
                try:
                    rest = left[sock] or more
                    left[sock] = rest[sock.send(rest[:CHUNK]) :]
                except BlockingIOError:
                    pass
                except OSError:
                    del left[sock]
                    sock.close()
            closed, _, _ = select.select(left, [], [], 0)
            for sock in closed:
                with contextlib.suppress(OSError):
                    if sock.recv(CHUNK):
                        continue
                del left[sock]
                sock.close()
            if not any(left.values()) and not more:
                time.sleep(0.01)

    return attack


def large(path: str, size: int, streams: int = 1) -> bytes:
    """Return calls that have `size` bytes of headers each."""
    part = frames.field("x", "y" * (bursts.CHUNK - 6))
    block = frames.block(path) + part * (size // len(part))
    return b"".join(
        bursts.in_parts(block, stream)
        + frames.frame(Kind.DATA, EMPTY_MESSAGE, stream=stream, flags=frames.END_STREAM)
        for stream in range(1, 2 * streams, 2)
    )


DROPPING_LINES: Final = 10
HALF: Final = b"\0\0\0\0\4\x0a"
"""The header of a message of 4 bytes, and its first byte."""
CHECK: Final = frames.block(frames.CHECK)

STAGES: Final = ("message", "half", "probe", "window")
"""When a call can be dropped: before its message is sent, after half of the message, while a probe
runs, or while the answer waits for a window."""


def drop(stage: str, port: int, count: int, seconds: float = 90) -> int:
    """Make calls and drop them at a stage; return the number of calls made.

    Args:
        stage: One of `STAGES`.
        port: The server's port.
        count: The number of calls to make.
        seconds: The time limit. It ends the calls before `count` if the server cuts many of the
            connections.
    """
    until = time.monotonic() + seconds
    data = {"message": None, "half": HALF}.get(stage, EMPTY_MESSAGE)
    whole = stage in ("probe", "window")
    lines: list[Line] = []
    made = 0
    while made < count and time.monotonic() < until:
        with ignoring_refusals():
            while len(lines) < DROPPING_LINES:
                lines.append(Line(port, 0 if stage == "window" else None))
        taken = [(line, line.streams(16)) for line in lines]
        for line, numbers in taken:
            with ignoring_refusals():
                line.send(b"".join(frames.call(CHECK, n, data, end=whole) for n in numbers))
                made += len(numbers)
        time.sleep(0.06)  # so that the handlers get the calls before the resets
        for line, numbers in taken:
            try:
                line.send(b"".join(map(frames.reset, numbers)))
                line.drain()
            except OSError:
                line.close()
                lines.remove(line)
        time.sleep(0.01)
    for line in lines:
        line.close()
    return made

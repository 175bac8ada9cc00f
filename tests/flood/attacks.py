"""The attacks, each in its own process: `python -m tests.flood.attacks NAME PORT SECONDS NICENESS`.

All traffic goes to 127.0.0.1, and each attack ends after SECONDS.
"""

import contextlib
import os
import select
import selectors
import socket
import sys
import time
from collections.abc import Callable, Iterator
from typing import Final

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
        self.next = 1
        self._socket.sendall(frames.hello(window))
        self._socket.recv(CHUNK)
        self._socket.sendall(frames.SETTINGS_ACK)
        self._socket.setblocking(False)
        self._left = b""

    def fileno(self) -> int:
        """Return the descriptor, so that a selector can wait for the connection."""
        return self._socket.fileno()

    def drain(self) -> None:
        """Discard the received data; raise OSError if the server has closed the connection."""
        with contextlib.suppress(BlockingIOError):
            while self._socket.recv(CHUNK):
                pass
            raise ConnectionResetError("closed by the server")

    def drained(self) -> bytes:
        """Return the data that has been received so far."""
        got = b""
        with contextlib.suppress(BlockingIOError):
            while chunk := self._socket.recv(CHUNK):
                got += chunk
        return got

    def send(self, data: bytes) -> bool:
        """Send as much as the socket accepts and keep the rest; return whether all is sent."""
        self._left += data
        with contextlib.suppress(BlockingIOError):
            while self._left:
                self._left = self._left[self._socket.send(self._left[:CHUNK]) :]
        return not self._left

    def streams(self, count: int) -> range:
        """Return the numbers of new streams; none is returned twice."""
        first, self.next = self.next, self.next + 2 * count
        return range(first, self.next, 2)

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()


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
            with ignoring_refusals():
                line = Line(port)
                try:
                    line.send(begin)
                    with selectors.DefaultSelector() as ready:
                        ready.register(line, selectors.EVENT_READ | selectors.EVENT_WRITE)
                        while time.monotonic() < until:
                            ready.select(0.1)
                            line.drain()
                            if line.send(b""):
                                line.send(data)
                            if rate:
                                time.sleep(0.1)
                finally:
                    line.close()

    return attack


def hold(
    headers: bytes,
    *,
    lines: int,
    streams: int,
    data: bytes | None = frames.EMPTY_MESSAGE,
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


def connect_and_go(rate: float | None = None) -> Attack:
    """Return an attack that connects, checks, sends GOAWAY and closes the connection.

    Args:
        rate: Connections per second; None for as many as the machine can open.
    """
    goaway = frames.frame(Kind.GOAWAY, bytes(8))
    data = frames.hello() + frames.call(frames.block(frames.CHECK), 1, end=True) + goaway

    def attack(port: int, until: float) -> None:
        following = time.monotonic()
        while time.monotonic() < until:
            with ignoring_refusals(), connected(port) as sock:
                sock.sendall(data)
            if rate:
                following += 1 / rate
                time.sleep(max(0.0, following - time.monotonic()))

    return attack


def reset_and_reconnect(headers: bytes, *, streams: int, rate: float | None = None) -> Attack:
    """Return an attack that connects, opens calls, resets them and closes the connection.

    Args:
        headers: The header block of each call.
        streams: The number of calls on each connection.
        rate: Connections per second; None for as many as the machine can open.
    """

    def attack(port: int, until: float) -> None:
        following = time.monotonic()
        while time.monotonic() < until:
            with ignoring_refusals():
                line = Line(port)
                try:
                    taken = line.streams(streams)
                    calls = [frames.call(headers, stream, end=True) for stream in taken]
                    line.send(b"".join(map(bytes.__add__, calls, map(frames.reset, taken))))
                finally:
                    line.close()
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
    return b"".join(
        frame
        for stream in range(1, 2 * streams, 2)
        for frame in (
            frames.frame(Kind.HEADERS, frames.block(path), stream=stream),
            *[frames.frame(Kind.CONTINUATION, frames.field("x", "y" * 16_000), stream=stream)]
            * (size // 16_000),
            frames.frame(Kind.CONTINUATION, b"", stream=stream, flags=frames.END_HEADERS),
            frames.frame(Kind.DATA, EMPTY_MESSAGE, stream=stream, flags=frames.END_STREAM),
        )
    )


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
    data = {"message": None, "half": HALF}.get(stage, frames.EMPTY_MESSAGE)
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


DROPPING_LINES: Final = 10
UNKNOWN: Final = frames.frame(Kind.UNKNOWN, bytes(91))
PING: Final = frames.frame(Kind.PING, bytes(8))
CHECK: Final = frames.block(frames.CHECK)
WATCH: Final = frames.block(frames.WATCH)
HALF: Final = b"\0\0\0\0\4\x0a"
"""The header of a message of 4 bytes, and its first byte."""
OPEN: Final = frames.frame(Kind.HEADERS, CHECK, stream=1)  # without END_HEADERS
MORE: Final = frames.frame(Kind.CONTINUATION, frames.field("x", "y" * 8000), stream=1)
FIRST: Final = frames.call(CHECK, 1, None, end=False)

ATTACKS: Final[dict[str, Attack]] = {
    "unknown-frames": pour(UNKNOWN),
    "priority-frames": pour(frames.frame(Kind.PRIORITY, bytes(5), stream=3)),
    "settings-frames": pour(frames.settings(65535)),
    "ping-frames": pour(PING),
    "window-frames": pour(frames.frame(Kind.WINDOW_UPDATE, b"\0\0\0\1")),
    "empty-data-frames": pour(frames.frame(Kind.DATA, stream=1), begin=FIRST),
    "continuation": pour(MORE, begin=OPEN),
    "held-checks": hold(CHECK, lines=32, streams=200),
    "held-checks-large": hold(frames.block(frames.CHECK, frames.LARGE), lines=20, streams=200),
    "held-no-message": hold(CHECK, lines=32, streams=200, data=None, end=False),
    "held-half-message": hold(CHECK, lines=32, streams=200, data=HALF, end=False),
    "held-reflection": hold(
        frames.block(frames.REFLECTION), lines=32, streams=200, data=None, end=False
    ),
    "held-watches": hold(WATCH, lines=32, streams=200),
    "waiting-checks": hold(CHECK, lines=50, streams=200, window=None),
    "rapid-reset": come_and_go(CHECK, lines=10, streams=20),
    "watch-churn": come_and_go(WATCH, lines=10, streams=20, wait=0.005),
    "connect-and-go": connect_and_go(),
    "wide-checks": hold(CHECK, lines=1000, streams=25),
    "wide-no-message": hold(CHECK, lines=1000, streams=25, data=None, end=False),
    "wide-large": hold(frames.block(frames.CHECK, frames.LARGE), lines=1000, streams=25),
    "idle-connections": hold(b"", lines=300, streams=0),
    "many-connections": hold(b"", lines=3000, streams=0),
    "connections-of-many": hold(b"", lines=3000, streams=0, of_each=16),
    "unknown-frames-1M": pour(UNKNOWN, rate=1 << 20),
    "ping-frames-100k": pour(PING, rate=100_000),
    "rapid-reset-1000": come_and_go(CHECK, lines=1, streams=20, wait=0.02),
    "connect-and-go-200": connect_and_go(200),
    "connect-and-go-1000": connect_and_go(1000),
    "connect-and-go-2000": connect_and_go(2000),
    "rapid-reset-200": reset_and_reconnect(CHECK, streams=5, rate=200),
    "rapid-reset-reconnect": reset_and_reconnect(CHECK, streams=20),
    "headers-1M": first_flight(large(frames.CHECK, 1 << 20), lines=3),
    "headers-4M": first_flight(large(frames.CHECK, 4 << 20), lines=3),
    "headers-43M": first_flight(large(frames.CHECK, 43 << 20), lines=3),
    "headers-watches": first_flight(large(frames.WATCH, 2 << 20, streams=20), lines=5),
    "headers-endless": first_flight(OPEN, more=MORE * 32, lines=8),
    "messages-large": first_flight(
        b"".join(
            frames.call(CHECK, n, b"\0\0\xff\xff\xff" + bytes(16_000), end=False)
            for n in range(1, 65, 2)
        ),
        more=b"".join(frames.frame(Kind.DATA, bytes(16_000), stream=n) for n in range(1, 65, 2)),
        lines=8,
    ),
}


def main() -> int:
    """Attack with a lower priority than ghealth: real attackers run on other processors."""
    name, port, seconds, niceness = sys.argv[1:]
    os.nice(int(niceness))
    ATTACKS[name](int(port), time.monotonic() + float(seconds))
    return 0


if __name__ == "__main__":
    sys.exit(main())

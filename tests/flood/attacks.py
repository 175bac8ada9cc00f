"""The attackers. One process each: `python -m tests.flood.attacks NAME PORT SECONDS NICENESS`.

All traffic goes to 127.0.0.1, and each attack ends after its time.
"""

import contextlib
import os
import selectors
import socket
import sys
import time
from collections.abc import Callable, Iterator
from typing import Final

from tests.flood import frames
from tests.flood.frames import Kind

HOST: Final = "127.0.0.1"
SOURCE: Final = "127.0.0.2"
"""The attackers' own address, as they are pods of their own."""
CHUNK: Final = 1 << 18

Attack = Callable[[int, float], None]


def connected(port: int) -> socket.socket:
    """Connect from the attackers' address."""
    return socket.create_connection((HOST, port), timeout=2, source_address=(SOURCE, 0))


class Line:
    """A connection that reads what comes, but does nothing with it.

    Args:
        port: Of the server.
        window: Bytes that the server may answer with on each stream.
    """

    def __init__(self, port: int, window: int | None = None) -> None:
        self._socket = connected(port)
        self.next = 1
        self._socket.sendall(frames.hello(window))
        self._socket.recv(CHUNK)
        self._socket.sendall(frames.SETTINGS_ACK)
        self._socket.setblocking(False)
        self._left = b""

    def fileno(self) -> int:
        """For a selector."""
        return self._socket.fileno()

    def drain(self) -> None:
        """Read what is there; raise OSError if the server has closed."""
        with contextlib.suppress(BlockingIOError):
            while self._socket.recv(CHUNK):
                pass
            raise ConnectionResetError("closed by the server")

    def drained(self) -> bytes:
        """Return what is there, all of it if the server has closed."""
        got = b""
        with contextlib.suppress(BlockingIOError):
            while chunk := self._socket.recv(CHUNK):
                got += chunk
        return got

    def send(self, data: bytes) -> bool:
        """Send what fits, keep the rest for the next time; whether all is sent."""
        self._left += data
        with contextlib.suppress(BlockingIOError):
            while self._left:
                self._left = self._left[self._socket.send(self._left[:CHUNK]) :]
        return not self._left

    def streams(self, count: int) -> range:
        """Take numbers for so many new streams."""
        first, self.next = self.next, self.next + 2 * count
        return range(first, self.next, 2)

    def close(self) -> None:
        """Hang up."""
        self._socket.close()


@contextlib.contextmanager
def ignoring_refusals() -> Iterator[None]:
    """Go on when the server closes or refuses a connection."""
    try:
        yield
    except OSError:
        time.sleep(0.002)


def pour(unit: bytes, *, begin: bytes = b"", rate: int | None = None) -> Attack:
    """An attack that sends the same bytes for ever on one connection.

    Args:
        unit: Whole frames.
        begin: Frames to send first.
        rate: Bytes a second; None for as many as the machine can send.
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
) -> Attack:
    """An attack that keeps as many calls open as the server allows.

    Args:
        headers: The header block of each call.
        lines: Connections.
        streams: Calls to open on each connection, again and again.
        data: Sent on each call after the headers.
        end: Whether the request ends.
        window: Bytes that the server may answer with on each stream.
        again: Seconds after which closed connections and calls are replaced.
    """

    def attack(port: int, until: float) -> None:
        held: list[Line | None] = [None] * lines
        while time.monotonic() < until:
            started = time.monotonic()
            for number in range(lines):
                with ignoring_refusals():
                    held[number] = held[number] or Line(port, window)
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
    """An attack that opens calls and resets them.

    Args:
        headers: The header block of each call.
        lines: Connections.
        streams: Calls between two reads.
        wait: Seconds between a call and its reset; 0 sends both at once, as fast as it goes.
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
    """An attack that connects, checks, says GOAWAY and hangs up.

    Args:
        rate: Connections a second; None for as fast as it goes.
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


STAGES: Final = ("message", "half", "probe", "window")
"""Where a call can be dropped: before its message, with half of it, while a probe runs, while its
answer waits for a window."""


def drop(stage: str, port: int, count: int, seconds: float = 90) -> int:
    """Make calls that are dropped at a stage; return how many could be made.

    Args:
        stage: One of `STAGES`.
        port: Of the server.
        count: How many.
        seconds: After which it ends; a server that cuts the connections takes longer.
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
        time.sleep(0.06)  # the handlers get the calls meanwhile
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
"""The first half of a message."""
OPEN: Final = frames.frame(Kind.HEADERS, CHECK, stream=1)  # the headers do not end
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
    "unknown-frames-1M": pour(UNKNOWN, rate=1 << 20),
    "ping-frames-100k": pour(PING, rate=100_000),
    "rapid-reset-1000": come_and_go(CHECK, lines=1, streams=20, wait=0.02),
    "connect-and-go-200": connect_and_go(200),
    "connect-and-go-1000": connect_and_go(1000),
    "connect-and-go-2000": connect_and_go(2000),
}


def main() -> int:
    """Attack with less than ghealth's priority: real attackers have processors of their own."""
    name, port, seconds, niceness = sys.argv[1:]
    os.nice(int(niceness))
    ATTACKS[name](int(port), time.monotonic() + float(seconds))
    return 0


if __name__ == "__main__":
    sys.exit(main())

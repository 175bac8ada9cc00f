"""Attacks that last: each runs until a time, and all traffic goes to 127.0.0.1."""

import math
import select
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import KW_ONLY, dataclass
from typing import Final

from tests.flood import bursts
from tests.support import frames
from tests.support.frames import EMPTY_MESSAGE, Kind

HOST: Final = "127.0.0.1"
SOURCE: Final = "127.0.0.2"
"""The attackers' address. Honest callers have another one, as separate pods do."""
CHUNK: Final = 1 << 18

Attack = Callable[[int, float], object]


class Line:
    """A connection that reads and discards what the server sends.

    Args:
        port: The server's port.
        hello: What it sends first.
        source: The client's address.
        greets: Whether it waits for the server's SETTINGS and acknowledges them. Without this, no
            limit in them holds.
    """

    def __init__(
        self, port: int, hello: bytes, source: str = SOURCE, *, greets: bool = True
    ) -> None:
        self._socket = socket.create_connection((HOST, port), timeout=2, source_address=(source, 0))
        self.fileno, self.close = self._socket.fileno, self._socket.close
        self._next = 1
        self.left = hello
        if greets:
            self._socket.sendall(self.left)
            self._socket.recv(CHUNK)
            self.left = frames.SETTINGS_ACK
        self._socket.setblocking(False)

    def drain(self) -> None:
        """Discard the received data; raise OSError if the server has closed the connection."""
        with suppress(BlockingIOError):
            while self._socket.recv(CHUNK):
                pass
            raise ConnectionResetError("closed by the server")

    def send(self, data: bytes) -> bool:
        """Send as much as the socket accepts and keep the rest; return whether all is sent."""
        self.left += data
        with suppress(BlockingIOError):
            while self.left:
                self.left = self.left[self._socket.send(self.left[:CHUNK]) :]
        return not self.left

    def streams(self, count: int) -> range:
        """Return the numbers of new streams; none is returned twice."""
        first, self._next = self._next, self._next + 2 * count
        return range(first, self._next, 2)


@contextmanager
def ignoring_refusals() -> Iterator[None]:
    """Continue after the block if the server closes or refuses a connection in it."""
    try:
        yield
    except OSError:
        time.sleep(0.002)


class Lines(dict[int, Line]):
    """Connections by number; those that the server closes or refuses are replaced.

    Args:
        count: How many.
        connect: Opens the one with a number.
    """

    def __init__(self, count: int, connect: Callable[[int], Line]) -> None:
        super().__init__()
        self._count = count
        self._connect = connect

    def each(self, act: Callable[[Line], object]) -> None:
        """Read from each connection, and act on it once all before is sent."""
        for number in range(self._count):
            with ignoring_refusals():
                if number not in self:
                    self[number] = self._connect(number)
            if line := self.get(number):
                try:
                    line.drain()
                    if line.send(b""):
                        act(line)
                except OSError:
                    self.pop(number).close()

    def close(self) -> None:
        """Close all."""
        for line in self.values():
            line.close()


def pour(
    unit: bytes = b"",
    *,
    begin: bytes = b"",
    rate: int | None = None,
    lines: int = 1,
    greets: bool = True,
) -> Attack:
    """Return an attack that repeats the same bytes on each connection.

    Args:
        unit: The complete frames to repeat; nothing, to keep the connections open.
        begin: Frames to send first on each connection.
        rate: Bytes per second; None for as many as the machine can send.
        lines: The number of connections.
        greets: Whether they acknowledge the server's SETTINGS.
    """
    data = unit * max(1, (rate // 10 if rate else CHUNK) // max(1, len(unit)))

    def attack(port: int, until: float) -> None:
        held = Lines(lines, lambda _: Line(port, frames.hello() + begin, greets=greets))
        while time.monotonic() < until:
            held.each(lambda line: line.send(data))
            if rate:
                time.sleep(0.1)
            writing = [line for line in held.values() if data or line.left]
            select.select(held.values(), writing, [], 0.1 if len(held) == lines else 0.002)

    return attack


@dataclass(frozen=True)
class Hold:
    """An attack that opens calls, which it keeps or drops; it returns their number.

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
        drops: Whether calls are reset after `again` seconds; with 0 each call and its reset are
            sent at once.
        most: The number of calls after which it ends.
    """

    headers: bytes
    _: KW_ONLY
    lines: int
    streams: int
    data: bytes | None = EMPTY_MESSAGE
    end: bool = True
    window: int | None = 0
    again: float = 0.5
    of_each: int | None = None
    drops: bool = False
    most: float = math.inf

    def __call__(self, port: int, until: float) -> int:
        """Attack until a time."""
        dropped: dict[Line, bytes] = {}
        made = 0

        def connect(number: int) -> Line:
            source = f"127.0.2.{1 + number // self.of_each}" if self.of_each else SOURCE
            return Line(port, frames.hello(self.window), source)

        def open_calls(line: Line) -> None:
            nonlocal made
            taken = line.streams(self.streams)
            calls = [frames.call(self.headers, n, self.data, end=self.end) for n in taken]
            resets = list(map(frames.reset, taken))
            if self.drops and self.again:
                dropped[line] = b"".join(resets)
            line.send(b"".join(calls if self.again else map(bytes.__add__, calls, resets)))
            made += self.streams

        with closing(Lines(self.lines, connect)) as held:
            while (started := time.monotonic()) < until and made < self.most:
                held.each(open_calls)
                while time.monotonic() < min(until, started + self.again):
                    time.sleep(min(self.again, 0.01))
                    for line in held.values():
                        with suppress(OSError):
                            line.send(b"")
                for line, resets in dropped.items():
                    with suppress(OSError):
                        line.send(resets)
                dropped.clear()
        return made


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
            with ignoring_refusals(), closing(Line(port, frames.hello(), greets=greets)) as line:
                line.send(calls)
            if rate:
                following += 1 / rate
                time.sleep(max(0.0, following - time.monotonic()))

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

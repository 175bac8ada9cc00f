"""Clients: an ALB's checks, checks and watches on one connection, callers that leave, h2load."""

import re
import selectors
import socket
import struct
import subprocess
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Final

from bench.speed import figures
from tests.support import frames
from tests.support.frames import ACK, CHECK, END_STREAM, SETTINGS_ACK, WATCH, Kind
from tests.support.wire import framed

CALLS_EACH: Final = 32
"""Calls at a time on one connection: ghealth's limit."""

WATCHES_EACH: Final = 24
"""Of these, watches."""

_CONNECTIONS_EACH: Final = 16
"""Connections from one address, as a node of a load balancer has them."""

_LEAVERS_ADDRESSES: Final = 1000
"""Addresses of the callers that leave before their answer."""

_LEAVERS_AT_A_TIME: Final = 50

_WAITING_RATE: Final = 1000.0
"""Checks a second that a grpc.aio server accepts without a queue that is too long for gRPC."""

_TIMEOUT: Final = 30.0
_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)
_ENDS: Final = (Kind.HEADERS, Kind.DATA)
_HEADERS: Final = frames.block(
    CHECK, [("content-length", "5"), ("user-agent", "ELB-HealthChecker/2.0")], host="host"
)

# Built once, and parsed with little work, since the client shares the cores with the server.
_ALBS_REQUEST: Final = frames.hello() + frames.call(_HEADERS, 1, end=True)


def check(port: int) -> float:
    """Make one check as an ALB does, on a separate connection.

    Args:
        port: The server's port on 127.0.0.1.

    Returns:
        The seconds until the end of the answer.

    Raises:
        OSError: If there is no answer.
    """
    begin = time.perf_counter()
    received = bytearray()
    with socket.create_connection(("127.0.0.1", port), _TIMEOUT) as connection:
        connection.sendall(_ALBS_REQUEST)
        while data := connection.recv(65536):
            received += data
            for kind, flags, _, _ in frames.taken(received):
                if kind == Kind.SETTINGS and not flags & ACK:
                    connection.sendall(SETTINGS_ACK)
                elif kind in _ENDS and flags & END_STREAM:
                    return time.perf_counter() - begin
    raise ConnectionResetError


def cpu_of_checks(pid: int, port: int, number: int, pause: float = 0.0) -> float:
    """Return the seconds of CPU that each of a number of checks costs a server.

    Args:
        pid: The number of its process.
        port: Its port on 127.0.0.1.
        number: The number of checks, each on a new connection.
        pause: Seconds after each.
    """
    used = figures.cpu(pid)
    for _ in range(number):
        check(port)
        time.sleep(pause)
    return (figures.cpu(pid) - used) / number


def _connect(port: int, client: int) -> socket.socket:
    """Connect from one of many addresses, since ghealth limits what one address holds."""
    address = f"127.0.{1 + client // 250 % 250}.{1 + client % 250}"
    return socket.create_connection(("127.0.0.1", port), _TIMEOUT, (address, 0))


class Connection:
    """A connection that carries many calls.

    Args:
        port: The server's port on 127.0.0.1.
        client: The number of its address.
    """

    def __init__(self, port: int, client: int) -> None:
        self.socket = _connect(port, client)
        self.messages = 0
        self.ended = 0
        self._received = bytearray()
        self._next = 1
        self.socket.sendall(frames.hello())
        self.read()  # the server's settings

    def call(self, path: str, messages: Sequence[bytes]) -> None:
        """Begin a call for each request message."""
        calls = []
        for message in messages:
            calls.append(frames.call(frames.block(path), self._next, framed(message), end=True))
            self._next += 2
        self.socket.sendall(b"".join(calls))

    def read(self) -> None:
        """Read what has come, and count messages and ends of calls.

        Raises:
            ConnectionResetError: If the server has closed the connection.
        """
        data = self.socket.recv(1 << 18)
        if not data:
            raise ConnectionResetError
        self._received += data
        for kind, flags, _, payload in frames.taken(self._received):
            if kind == Kind.SETTINGS and not flags & ACK:
                self.socket.sendall(SETTINGS_ACK)
            self.messages += kind == Kind.DATA and bool(payload)
            self.ended += kind == Kind.RESET or (kind in _ENDS and bool(flags & END_STREAM))


@contextmanager
def connections(port: int, number: int) -> Iterator[list[Connection]]:
    """Hold a number of connections open until the end of the block."""
    opened: list[Connection] = []
    with ExitStack() as stack:
        for index in range(number):
            opened.append(Connection(port, index // _CONNECTIONS_EACH))
            stack.callback(opened[-1].socket.close)
        yield opened


@contextmanager
def watching(port: int, services: Sequence[str]) -> Iterator[None]:
    """Watch each of these services until the end of the block, begun by a first message for each.

    Raises:
        RuntimeError: If a watch was refused.
    """
    messages = [b"\x0a" + bytes((len(name),)) + name.encode() if name else b"" for name in services]
    with connections(port, -(-len(services) // WATCHES_EACH)) as opened:
        for number, connection in enumerate(opened):
            asked = messages[number * WATCHES_EACH : (number + 1) * WATCHES_EACH]
            connection.call(WATCH, asked)
            while connection.messages < len(asked):
                connection.read()
                if connection.ended:
                    raise RuntimeError("a watch was refused")
        yield


@contextmanager
def waiting(port: int, checks: int) -> Iterator[list[Connection]]:
    """Start checks, over as many connections as the server's limits need.

    Args:
        port: The server's port on 127.0.0.1.
        checks: Their number; `_WAITING_RATE` of them start in a second.
    """
    with connections(port, -(-checks // CALLS_EACH)) as opened:
        begin = time.perf_counter()
        for number, connection in enumerate(opened):
            before = number * CALLS_EACH
            time.sleep(max(0.0, begin + before / _WAITING_RATE - time.perf_counter()))
            connection.call(CHECK, [b""] * min(CALLS_EACH, checks - before))
        yield opened


def answers(opened: Sequence[Connection], checks: int) -> tuple[float, float]:
    """Wait until all checks are answered.

    Returns:
        The times of the first and of the last answer, of time.perf_counter.
    """
    first, left = 0.0, checks
    with selectors.DefaultSelector() as selector:
        for connection in opened:
            selector.register(connection.socket, selectors.EVENT_READ, connection)
        while left > 0:
            ready = selector.select(_TIMEOUT)
            if not ready:
                raise TimeoutError
            for key, _ in ready:
                key.data.read()
            left = checks - sum(connection.ended for connection in opened)
            if not first and left < checks:
                first = time.perf_counter()
    return first, time.perf_counter()


def leave(port: int, clients: int, rate: float) -> None:
    """Begin checks, each on a separate connection, and disconnect before they are answered.

    Args:
        port: The server's port on 127.0.0.1, of one whose gateway hangs.
        clients: Their number; every second one resets its connection, the others close it.
        rate: How many of them begin in a second at most.
    """
    begin = time.perf_counter()
    still_open: deque[socket.socket] = deque()
    for number in range(clients):
        time.sleep(max(0.0, begin + number / rate - time.perf_counter()))
        client = _connect(port, number % _LEAVERS_ADDRESSES)
        if number % 2:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        client.sendall(_ALBS_REQUEST)
        client.recv(frames.HEAD)  # the server speaks HTTP/2 by now
        still_open.append(client)
        if len(still_open) > _LEAVERS_AT_A_TIME:
            still_open.popleft().close()
    for client in still_open:
        client.close()


def storm(port: int, checks: int) -> float:
    """Check by h2load, on 10 connections with 4 streams each.

    Args:
        port: The server's port on 127.0.0.1.
        checks: Their number.

    Returns:
        Checks a second.

    Raises:
        RuntimeError: If a check was not answered.
    """
    with tempfile.NamedTemporaryFile() as message:
        message.write(frames.EMPTY_MESSAGE)
        message.flush()
        command = ["h2load", "-c10", "-m4", "-t1", f"-n{checks}", "-d", message.name]
        command += ["-H", "content-type: application/grpc", "-H", "te: trailers"]
        command += [f"http://127.0.0.1:{port}{CHECK}"]
        shown = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    rate = re.search(r"([\d.]+) req/s", shown.stdout)
    if rate is None or f" {checks} succeeded" not in shown.stdout:
        raise RuntimeError(shown.stdout)
    return float(rate[1])

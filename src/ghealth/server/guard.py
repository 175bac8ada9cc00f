"""Limits calls, connections and memory of untrusted clients by cutting connections.

gRPC limits the calls of each connection, but not those of all connections together, and it can
neither close a connection nor end a call whose answer waits until the client reads it.
"""

import asyncio
import ctypes
import functools
import logging
import math
import os
import select
import socket
import stat
import struct
import sys
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, NamedTuple
from urllib.parse import unquote

from ghealth.events import ConnectionsCut, CutReason, Sink
from ghealth.process import MAX_DESCRIPTORS
from ghealth.server.limits import (
    KERNEL_BUFFER,
    MAX_CALLS,
    MAX_HEADERS,
    RECOMMENDED_MEMORY,
    SETTINGS_TIMEOUT,
)

_log = logging.getLogger(__name__)

ROOM: Final = 0.75
"""Above a limit, connections are cut until this fraction of it is left. Connections without a call
are cut when they use this fraction of the descriptors."""

MEMORY_STEP: Final = 8 << 20
"""Bytes more than at the start after which freed memory is returned to the system."""

TRIM_INTERVAL: Final = 5.0
"""Minimum number of seconds between two times at which freed memory is returned. The memory of a
flood is freed only some seconds after its end."""

MEMORY_SHARE: Final = 0.1
"""Memory is short when new connections have taken this fraction of what was free at the start: the
rest can be gone a moment later. Without new connections it is short at `ROOM`."""

CALM_INTERVAL: Final = 1.0
"""Seconds between two inspections while no new connection is noticed. About one in a hundred is
missed; with headers before the acknowledgement, one connection can fill 20 MiB."""

BUSY_INTERVAL: Final = 0.02
"""Seconds from a new connection to an inspection, and between two while there are new connections,
or much is in use."""

SHORT_INTERVAL: Final = 0.003
"""The same while memory is short: a client that is cut may connect again at once."""

SETTLED_AFTER: Final = 2 * SETTINGS_TIMEOUT
"""Seconds after which every new connection has acknowledged SETTINGS, or is closed."""

_libc: Final = ctypes.CDLL(None)
_NO_ADDRESS: Final = struct.pack("H14x", socket.AF_UNSPEC)
_TCP_INFO: Final = struct.Struct("52xI72xQ")
"""`tcpi_last_data_recv` and `tcpi_bytes_received` of struct tcp_info in linux/tcp.h."""
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")


class Peer(NamedTuple):
    """The client's side of a connection."""

    host: str
    port: int


def peer_of(name: str) -> Peer:
    """Return the client of a call.

    Args:
        name: gRPC's name, such as `ipv4:10.0.3.7:4711` or `ipv6:%5B::1%5D:4711`.
    """
    host, _, port = unquote(name).partition(":")[2].rpartition(":")
    return Peer(_plain(host.strip("[]")), int(port) if port.isdecimal() else 0)


def _plain(host: str) -> str:
    return host.partition("%")[0].removeprefix("::ffff:")


@dataclass(slots=True, eq=False)
class OpenCall:
    """A call that holds memory.

    Args:
        peer: Its client.
        is_watch: Whether it is an accepted Watch. Watches have a separate limit.
    """

    peer: Peer
    is_watch: bool = False


class Connections:
    """The connections of a server, found among the file descriptors of this process.

    It opens its descriptors when it is created and needs no more later, because an attack may use
    up all others. It works only on duplicates of sockets: gRPC can close a socket at any moment,
    and its number can then belong to another socket.
    """

    def __init__(self) -> None:
        self._statm = os.open("/proc/self/statm", os.O_RDONLY)
        self._duplicate = os.dup(self._statm)
        self._listening = select.epoll()
        self._kept = {self._statm, self._duplicate, self._listening.fileno()}

    def close(self) -> None:
        """Close the reserved descriptors."""
        asyncio.get_running_loop().remove_reader(self._listening.fileno())
        self._listening.close()
        os.close(self._duplicate)
        os.close(self._statm)

    def memory(self) -> int:
        """Return the bytes that this process has for itself: what a control group counts."""
        _, resident, shared, *_ = map(int, os.pread(self._statm, 128, 0).split())
        return (resident - shared) * _PAGE

    def count(self) -> int:
        """Return the number of open descriptors: an upper bound of the connections, and fast."""
        return len(self._descriptors())

    def each(self, ports: Collection[int]) -> Iterator[tuple[Peer, socket.socket]]:
        """Yield the client and a socket of each connection.

        The socket is valid only until the next one is yielded.

        Args:
            ports: The server's ports.
        """
        for found in self._sockets(ports):
            with suppress(OSError):  # a listening socket, or already closed
                host, port = found.getpeername()[:2]
                yield Peer(_plain(host), port), found

    def listen(self, ports: Collection[int]) -> None:
        """Limit the kernel's receive buffer of new connections, and get ready to notice them.

        The buffer can be 6 MiB otherwise. Accepted sockets inherit the limit from those that
        listen. gRPC has an option for it, which has no effect on a server.

        Args:
            ports: The server's ports. Call this before the server accepts connections.
        """
        for found in self._sockets(ports):
            # The kernel doubles this number (socket(7)).
            found.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, KERNEL_BUFFER // 2)
            # It stays registered after the duplicate is closed, as gRPC's descriptor is open
            # (epoll(7)). Edge-triggered: gRPC accepts the connection.
            self._listening.register(found, select.EPOLLIN | select.EPOLLET)

    def when_new(self, arrived: Callable[[], object]) -> None:
        """Call a function once, at the next new connection.

        Args:
            arrived: The function. A connection that gRPC accepts very quickly can be missed.
        """
        loop = asyncio.get_running_loop()

        def notice() -> None:
            loop.remove_reader(self._listening.fileno())
            arrived()

        self._listening.poll(0)  # forgets those that came before
        loop.add_reader(self._listening.fileno(), notice)

    def _sockets(self, ports: Collection[int]) -> Iterator[socket.socket]:
        try:
            for descriptor in self._descriptors():
                try:
                    # A duplicate of a file would, when it is closed, release the locks that a
                    # program that serves inside itself has on it (fcntl(2)).
                    if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                        continue
                    os.dup2(descriptor, self._duplicate, inheritable=False)
                    found = socket.socket(fileno=self._duplicate)
                except OSError:  # closed
                    continue
                try:
                    is_ip = found.family in (socket.AF_INET, socket.AF_INET6)
                    if is_ip and found.getsockname()[1] in ports:
                        yield found
                finally:
                    found.detach()
        finally:
            os.dup2(self._statm, self._duplicate, inheritable=False)

    def _descriptors(self) -> Collection[int]:
        try:
            names = os.listdir("/dev/fd")  # noqa: PTH208 - Path objects take ten times as long
        except OSError:  # no descriptor is free to read the directory
            return set(range(os.sysconf("SC_OPEN_MAX"))) - self._kept
        return set(map(int, names)) - self._kept


class NoConnections(Connections):
    """No connections: on a system other than Linux they cannot be found, and are not limited."""

    def __init__(self) -> None:
        pass

    def close(self) -> None:
        """Do nothing."""

    def memory(self) -> int:
        """Return 0."""
        return 0

    def count(self) -> int:
        """Return 0."""
        return 0

    def each(self, ports: Collection[int]) -> Iterator[tuple[Peer, socket.socket]]:  # noqa: ARG002
        """Yield nothing."""
        return iter(())

    def listen(self, ports: Collection[int]) -> None:
        """Do nothing."""

    def when_new(self, arrived: Callable[[], object]) -> None:
        """Do nothing."""


def _traffic(connection: socket.socket) -> tuple[int, int]:
    """Return the milliseconds since the client sent something, and all bytes that it has sent."""
    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)
    silence, received = _TCP_INFO.unpack(info)
    return silence, received


def _reset(connection: socket.socket) -> None:
    """End a connection at once, and discard what it has received and not sent yet.

    connect(2): AF_UNSPEC dissolves the association, which Linux does with a reset. After
    shutdown(2), gRPC would read on for as long as the client sends.
    """
    _libc.connect(connection.fileno(), _NO_ADDRESS, len(_NO_ADDRESS))


def _trim() -> None:
    """Return freed memory to the system; glibc keeps it otherwise."""
    with suppress(AttributeError):  # another C library
        _libc.malloc_trim(0)


class Guard:
    """Counts calls, connections and memory, and above a limit cuts connections.

    Each limit has one rule: of the address that holds most, the connections that hold most are cut,
    until enough is free. Clients that share an address (behind a node's SNAT, or with host network)
    count as one client, but of these, too, an honest client's connection holds little. Nothing is
    refused afterwards: an address that is blocked would connect again and again, and gRPC's queue
    of calls would be full of its calls.

    Args:
        max_watches: Maximum number of open watches; they do not count for `MAX_CALLS`.
        descriptors: How many descriptors this process may have.
        emit: Receives `ConnectionsCut`; it must not raise.
        clock: Seconds on a monotonic clock.
        connections: Finds the connections; `close` closes it.
        trim: Returns freed memory to the system.
        limit: The bytes of memory that this process may have; None without a limit.
    """

    def __init__(
        self,
        *,
        max_watches: int,
        descriptors: int,
        emit: Sink,
        clock: Callable[[], float] = time.monotonic,
        connections: Connections | None = None,
        trim: Callable[[], object] = _trim,
        limit: int | None,
    ) -> None:
        self._max_calls = MAX_CALLS + max_watches
        self._descriptors = descriptors
        self._emit = emit
        self._clock = clock
        if connections is None:
            connections = Connections() if sys.platform == "linux" else NoConnections()
        self._connections = connections
        self._trim = trim
        self._ports: frozenset[int] = frozenset()
        # A dict, because it keeps the order: the oldest call is first.
        self._calls: dict[OpenCall, None] = {}
        self._at_start = self._usual = self._connections.memory()
        room = RECOMMENDED_MEMORY if limit is None else max(0, limit - self._at_start)
        self._max_memory = self._at_start + room * ROOM
        self._max_growth = max(room * MEMORY_SHARE, 2 * MEMORY_STEP)
        self._trimmed_at = clock()
        # The fewest descriptors of the current interval, and of the one before: above them,
        # connections are new.
        self._fewest = self._settled = math.inf
        # What each connection had sent when the interval began, and the one before: an honest
        # client has sent much only in a long time.
        self._sent: dict[Peer, int] = {}
        self._sent_before: dict[Peer, int] = {}
        # The descriptors that are no connections: a program that serves inside itself has others.
        self._others = self._connections.count()
        self._settles_at = clock() + SETTLED_AFTER
        self._next_look: asyncio.TimerHandle | None = None

    def close(self) -> None:
        """Release the descriptors, and guard nothing from now on.

        A call can still arrive if the server could not be stopped. The numbers of the descriptors
        can then belong to other files.
        """
        if self._next_look is not None:
            self._next_look.cancel()
        self._connections.close()
        self._connections = NoConnections()

    def serve(self, ports: Iterable[int]) -> None:
        """Guard the connections to these ports, and limit their receive buffers.

        Args:
            ports: The server's ports. The server listens already but does not accept connections
                yet.
        """
        self._ports = frozenset(ports)
        self._connections.listen(self._ports)

    def enter(self, name: str) -> OpenCall:
        """Count a new call, and return it, for `leave`.

        Args:
            name: gRPC's name of the client, as for `peer_of`.
        """
        call = OpenCall(peer_of(name))
        self._calls[call] = None
        if len(self._calls) > self._max_calls:
            held = Counter(call.peer for call in self._calls if not call.is_watch)
            self._shed("calls", held, len(self._calls) - self._max_calls * ROOM)
        return call

    def leave(self, call: OpenCall) -> None:
        """Stop counting a call.

        Args:
            call: The call; it may already be removed because its connection was cut.
        """
        self._calls.pop(call, None)

    def start(self) -> None:
        """Inspect the connections again and again, soon after there is a new one, until `close`."""
        seconds = BUSY_INTERVAL
        try:
            seconds = self.look()
        except Exception:
            _log.exception("guarding failed", extra={"event": "internal_error"})
        self._look_in(seconds)
        if seconds == CALM_INTERVAL:
            self._connections.when_new(functools.partial(self._look_in, BUSY_INTERVAL))

    def _look_in(self, seconds: float) -> None:
        if self._next_look is not None:
            self._next_look.cancel()
        # Not a task that sleeps: without callers, its turns would be most of what ghealth costs.
        self._next_look = asyncio.get_running_loop().call_later(seconds, self.start)

    def look(self) -> float:
        """Inspect descriptors and memory once, and cut connections above a limit.

        Returns:
            The seconds until the next inspection: `CALM_INTERVAL`, or less while much is in use or
            a new connection may not have acknowledged SETTINGS.
        """
        count, used, now = self._connections.count(), self._connections.memory(), self._clock()
        self._fewest = min(self._fewest, count)
        if now >= self._settles_at:
            self._settle(count, used, now)
        is_busy = count > min(self._settled, self._fewest, self._others + self._room() / 2)
        if count > self._others + self._room():
            silence = {peer: silence for peer, (silence, _) in self._all()}
            in_use = {call.peer for call in self._calls}
            idle = sorted(silence.keys() - in_use, key=silence.__getitem__, reverse=True)
            excess = len(silence) - self._room() * ROOM
            self._shed("connections", dict.fromkeys(idle, 1), excess)
        is_short = used > min(self._usual + self._max_growth, self._max_memory)
        if is_short:
            before = self._sent_before
            recent = {peer: sent - before.get(peer, 0) for peer, (_, sent) in self._all()}
            # An honest client has sent less, and is not cut.
            held = {peer: sent for peer, sent in recent.items() if sent > MAX_HEADERS}
            self._shed("memory", held, used - self._at_start)
        if is_busy:
            return SHORT_INTERVAL if is_short else BUSY_INTERVAL
        self._usual = used
        if used > self._at_start + MEMORY_STEP and now >= self._trimmed_at + TRIM_INTERVAL:
            self._trimmed_at = now
            self._trim()
        return CALM_INTERVAL

    def _room(self) -> float:
        return min(MAX_DESCRIPTORS, self._descriptors - self._others) * ROOM

    def _settle(self, count: int, used: int, now: float) -> None:
        self._settles_at = now + SETTLED_AFTER
        self._settled, self._fewest = self._fewest, count
        sent = {peer: sent for peer, (_, sent) in self._all()}
        self._others = count - len(sent)
        if sent.keys() <= self._sent.keys():  # no connection is new, but other descriptors can be
            self._usual = used
        self._sent_before, self._sent = self._sent, sent

    def cut_all(self) -> None:
        """Cut every connection, because an open one can keep the server from stopping."""
        for _, connection in self._connections.each(self._ports):
            _reset(connection)

    def _all(self) -> Iterator[tuple[Peer, tuple[int, int]]]:
        return ((peer, _traffic(found)) for peer, found in self._connections.each(self._ports))

    def _shed(self, reason: CutReason, held: Mapping[Peer, int], excess: float) -> None:
        """Cut connections until those that are cut held the excess.

        The address that holds most comes first, and of its connections the one that holds most; of
        equal ones the first, so that a short check is rarely cut.
        """
        of_address: Counter[str] = Counter()
        for peer, amount in held.items():
            of_address[peer.host] += amount
        chosen: set[Peer] = set()
        for peer in sorted(held, key=lambda p: (of_address[p.host], held[p]), reverse=True):
            if excess <= 0:
                break
            chosen.add(peer)
            excess -= held[peer]
        cut: Counter[str] = Counter()
        for peer, connection in self._connections.each(self._ports):
            if peer in chosen:
                _reset(connection)
                cut[peer.host] += 1
        for call in [call for call in self._calls if call.peer in chosen]:
            del self._calls[call]
        for host, count in cut.items():
            self._emit(ConnectionsCut(address=host, count=count, reason=reason))

"""Limits calls and connections of untrusted clients by cutting those of the client with most.

gRPC limits the calls of each connection, but not the calls of all connections together. It cannot
close a connection, and cannot end a call whose answer waits until the client reads it.
"""

import asyncio
import ctypes
import logging
import math
import os
import socket
import struct
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final, NamedTuple
from urllib.parse import unquote

from ghealth.events import ConnectionsCut, CutReason, Sink

_log = logging.getLogger(__name__)

MAX_CALLS: Final = 256
"""Maximum number of open calls, not counting watches. A hundred load balancer nodes that check
every 5 s have 60 open calls while the gateway is slow."""

MAX_CONNECTIONS: Final = 256
"""Maximum number of connections. Above it, all connections of the address with most are cut."""

SHARE: Final = 16
"""Connections, or calls, that an address may have without being blocked for their number."""

IDLE_TIME: Final = 0.5
"""Seconds without a call after which a connection may be cut when descriptors run out. gRPC may
need some time until it reads the first call of a new connection."""

SENDING_TIMEOUT: Final = 4.0
"""Seconds that an answer may wait until its client reads it. After that it may be outdated."""

MAX_UNDELIVERED: Final = 50
"""Maximum number of answers in `UNDELIVERED_WINDOW` that could not be delivered to an address.
Each leaks a few hundred bytes in grpcio."""

UNDELIVERED_WINDOW: Final = 60.0
"""Seconds after which undelivered answers are counted from 0 again."""

BLOCK: Final = 2.0
"""Seconds of the first block of an address. Each further block is twice as long."""

MAX_BLOCK: Final = 64.0
"""Maximum number of seconds of a block."""

FORGIVEN_AFTER: Final = 300.0
"""Seconds after the end of a block until the address counts as never blocked."""

MAX_BLOCKED: Final = 1000
"""Maximum number of addresses whose blocks are remembered."""

CALM_INTERVAL: Final = 0.25
"""Seconds between two inspections of the connections, usually."""

BUSY_INTERVAL: Final = 0.02
"""The same while there are many calls, many and ever more connections, a block, or an answer that
waits too long."""

SCAN_INTERVAL: Final = 1.0
"""Seconds after which the clients of many connections are counted again, if the number of
connections has hardly grown. Each connection costs some microseconds."""

KERNEL_BUFFER: Final = 32 * 1024
"""Bytes that the kernel buffers for each connection until gRPC reads them."""

TRIM_INTERVAL: Final = 5.0
"""Minimum number of seconds between two times at which freed memory is returned to the system."""

TRIM_AFTER: Final = 1000
"""Calls after which freed memory is returned to the system, as it is after connections were cut."""

TRIMS: Final = 3
"""How many times it is returned then. Once is not enough: the memory of a flood is freed only
some seconds after the end of the flood."""

ROOM: Final = 0.75
"""When there are too many calls, calls are cut until this fraction of the limit is left."""

_RESET: Final = struct.pack("ii", 1, 0)


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
        sending_since: When the server began to send the current answer, by the guard's clock; None
            if none is being sent.
        is_overdue: Whether the last inspection found that sending takes too long.
    """

    peer: Peer
    is_watch: bool = False
    sending_since: float | None = None
    is_overdue: bool = False


@dataclass(slots=True)
class _Block:
    until: float
    times: int


class Connections:
    """The connections of a server, found among the file descriptors of this process.

    It opens two descriptors when it is created and needs no more later, because an attack may use
    up all others. It works only on duplicates of sockets: gRPC can close a socket at any moment,
    and its number can then belong to another socket.
    """

    def __init__(self) -> None:
        self._nothing = os.open(os.devnull, os.O_RDONLY)
        self._duplicate = os.open(os.devnull, os.O_RDONLY)

    def close(self) -> None:
        """Close the two reserved descriptors."""
        os.close(self._duplicate)
        os.close(self._nothing)

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

    def bound_buffers(self, ports: Collection[int]) -> None:
        """Limit the kernel's receive buffer of each new connection, which can be 6 MiB otherwise.

        It sets the limit on the listening sockets, and accepted sockets inherit it. gRPC has an
        option for this, but the option has no effect on a server.

        Args:
            ports: The server's ports. Call this before the server accepts connections.
        """
        for found in self._sockets(ports):
            # The kernel doubles this number (socket(7)).
            found.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, KERNEL_BUFFER // 2)

    def _sockets(self, ports: Collection[int]) -> Iterator[socket.socket]:
        try:
            for descriptor in self._descriptors():
                try:
                    os.dup2(descriptor, self._duplicate, inheritable=False)
                    found = socket.socket(fileno=self._duplicate)
                except OSError:  # closed, or not a socket
                    continue
                try:
                    is_ip = found.family in (socket.AF_INET, socket.AF_INET6)
                    if is_ip and found.getsockname()[1] in ports:
                        yield found
                finally:
                    found.detach()
        finally:
            os.dup2(self._nothing, self._duplicate, inheritable=False)

    def _descriptors(self) -> Collection[int]:
        kept = (self._nothing, self._duplicate)
        try:
            names = os.listdir("/dev/fd")  # noqa: PTH208 - Path objects take ten times as long
        except OSError:  # no descriptor is free to read the directory
            return [number for number in range(os.sysconf("SC_OPEN_MAX")) if number not in kept]
        return [int(name) for name in names if int(name) not in kept]


def _reset(connection: socket.socket) -> None:
    """End a connection. gRPC reads the end, and data that is not yet sent is discarded."""
    with suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        connection.shutdown(socket.SHUT_RDWR)


def _no_trim() -> None:
    """Do nothing: the C library has no malloc_trim()."""


def memory_trimmer() -> Callable[[], object]:
    """Return a function that returns freed memory to the system; glibc keeps it otherwise."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):
        return _no_trim
    return lambda: trim(0)


@dataclass(slots=True)
class _Undelivered:
    since: float
    counts: Counter[str] = field(default_factory=Counter)


class Guard:
    """Counts calls and connections, and above a limit cuts those of the address with most.

    Clients that share an address (behind a node's SNAT, or with host network) count as one client.
    An address with many calls or connections loses all its connections and is blocked for a while.
    If no address has many calls, the addresses with most are cut but not blocked; of equal ones,
    the address with the oldest call is cut first. An honest client's check is short, so it is
    rarely the oldest.

    Args:
        max_watches: Maximum number of open watches; they do not count for `MAX_CALLS`.
        descriptors: How many descriptors this process may have. When most are in use, connections
            without a call are cut.
        emit: Receives `ConnectionsCut`; it must not raise.
        clock: Seconds on a monotonic clock.
        connections: Finds the connections; `close` closes it.
        trim: Returns freed memory to the system.
    """

    def __init__(
        self,
        *,
        max_watches: int,
        descriptors: int,
        emit: Sink,
        clock: Callable[[], float] = time.monotonic,
        connections: Connections | None = None,
        trim: Callable[[], object] | None = None,
    ) -> None:
        self._max_calls = MAX_CALLS + max_watches
        self._emit = emit
        self._clock = clock
        self._connections = connections or Connections()
        self._trim = trim or memory_trimmer()
        self._ports: frozenset[int] = frozenset()
        # A dict, because it keeps the order: the oldest call is first.
        self._calls: dict[OpenCall, None] = {}
        self._blocks: dict[str, _Block] = {}
        self._undelivered = _Undelivered(clock())
        self._entered = 0
        self._trims_left = 0
        self._trimmed_at = clock()
        self._count = 0
        self._scanned_count = 0
        self._scanned_at = -math.inf
        self._max_descriptors = descriptors * ROOM
        self._idle_since: dict[Peer, float] = {}

    @property
    def calls(self) -> int:
        """The number of open calls."""
        return len(self._calls)

    def close(self) -> None:
        """Release the descriptors."""
        self._connections.close()

    def serve(self, ports: Iterable[int]) -> None:
        """Guard the connections to these ports, and limit their receive buffers.

        Args:
            ports: The server's ports. The server listens already but does not accept connections
                yet.
        """
        self._ports = frozenset(ports)
        self._connections.bound_buffers(self._ports)

    def enter(self, name: str) -> OpenCall | None:
        """Count a new call.

        Args:
            name: gRPC's name of the client, as for `peer_of`.

        Returns:
            The call, for `leave`; None if the call must not be answered, because its connection is
            being cut.
        """
        peer = peer_of(name)
        self._entered += 1
        if self._is_blocked(peer.host):
            return None
        call = OpenCall(peer)
        self._calls[call] = None
        self._idle_since.pop(peer, None)
        if len(self._calls) > self._max_calls:
            self._relieve()
        return call if call in self._calls else None

    def leave(self, call: OpenCall) -> None:
        """Stop counting a call.

        Args:
            call: The call; it may already be removed because its connection was cut.
        """
        self._calls.pop(call, None)

    def sending(self, call: OpenCall) -> None:
        """Record that the server begins to send an answer.

        Args:
            call: The call that is answered.
        """
        call.sending_since = self._clock()

    def sent(self, call: OpenCall) -> None:
        """Record that the answer is sent and the call stays open.

        Args:
            call: The call.
        """
        call.sending_since = None
        call.is_overdue = False

    def undelivered(self, call: OpenCall) -> None:
        """Record that an answer could not be delivered, and cut a client with too many of them.

        Args:
            call: The call.
        """
        now = self._clock()
        if call not in self._calls or call.sending_since is None:
            return
        if now - self._undelivered.since >= UNDELIVERED_WINDOW:
            self._undelivered = _Undelivered(now)
        counts = self._undelivered.counts
        counts[call.peer.host] += 1
        if counts[call.peer.host] > MAX_UNDELIVERED:
            del counts[call.peer.host]
            self._cut("undelivered answers", {call.peer.host}, {call.peer.host})

    async def run(self) -> None:
        """Inspect the connections regularly, until it is cancelled."""
        while True:
            is_busy = True
            try:
                is_busy = self.look()
            except Exception:
                _log.exception("guarding failed", extra={"event": "internal_error"})
            await asyncio.sleep(BUSY_INTERVAL if is_busy else CALM_INTERVAL)

    def look(self) -> bool:
        """Inspect the connections once.

        It cuts those above the limit, those of blocked addresses, and those on which an answer has
        waited too long.

        Returns:
            Whether the next inspection must follow after `BUSY_INTERVAL`.
        """
        now = self._clock()
        self._forgive(now)
        count = self._connections.count()
        blocked = {host for host, block in self._blocks.items() if now < block.until}
        late = [
            call
            for call in self._calls
            if call.sending_since is not None and now - call.sending_since > SENDING_TIMEOUT
        ]
        # A call must be late in two inspections. After this process was suspended, the answer may
        # be sent already, although gRPC has not reported it yet.
        overdue = {call.peer for call in late if call.is_overdue}
        for call in late:
            call.is_overdue = True
        if blocked or overdue:
            self._cut_each(lambda peer: peer.host in blocked or peer in overdue)
        if count > MAX_CONNECTIONS:
            self._bound_connections(count, now)
        if count > self._max_descriptors:
            self._free_descriptors(count, now)
        grows = count > MAX_CONNECTIONS / 2 and count != self._count
        self._count = count
        self._maybe_trim(now)
        return bool(blocked or late) or grows or self.calls > self._max_calls / 2

    def cut_all(self) -> None:
        """Cut every connection, because an open one can keep the server from stopping."""
        self._cut_each(lambda _: True)

    def _relieve(self) -> None:
        """Cut the addresses with most calls, until enough calls are closed."""
        counts = Counter(call.peer.host for call in self._calls if not call.is_watch)
        left = len(self._calls)
        hosts: dict[str, int] = {}
        for host, count in counts.most_common():  # equal counts: oldest first
            if left <= self._max_calls * ROOM:
                break
            hosts[host] = count
            left -= count
        self._cut("calls", hosts, {host for host, count in hosts.items() if count >= SHARE})

    def _bound_connections(self, count: int, now: float) -> None:
        """Cut the address with most connections, unless the last scan showed that none has many."""
        self._scanned_count = min(self._scanned_count, count)
        if count <= self._scanned_count + SHARE and now < self._scanned_at + SCAN_INTERVAL:
            return
        counts = Counter(peer.host for peer, _ in self._connections.each(self._ports))
        host, most = counts.most_common(1)[0] if counts else ("", 0)
        if most > SHARE:
            if counts.total() > MAX_CONNECTIONS:
                self._cut("connections", {host}, {host})
            now = -math.inf  # the next look scans again
        self._scanned_count, self._scanned_at = count, now

    def _free_descriptors(self, count: int, now: float) -> None:
        """Cut connections without a call, first those of the addresses with most of them."""
        in_use = {call.peer for call in self._calls}
        idle = [peer for peer, _ in self._connections.each(self._ports) if peer not in in_use]
        self._idle_since = {peer: self._idle_since.get(peer, now) for peer in idle}
        counts = Counter(peer.host for peer in idle)
        old = [peer for peer in idle if now >= self._idle_since[peer] + IDLE_TIME]
        old.sort(key=lambda peer: counts[peer.host], reverse=True)
        given_up = set(old[: count - int(self._max_descriptors * ROOM)])
        if given_up:
            for host, cut in self._cut_each(lambda peer: peer in given_up).items():
                self._emit(ConnectionsCut(address=host, count=cut, reason="descriptors in use"))

    def _cut_each(self, is_cut: Callable[[Peer], bool]) -> Counter[str]:
        """Reset connections, stop counting their calls, and return how many of each address."""
        cut: Counter[str] = Counter()
        for peer, connection in self._connections.each(self._ports):
            if is_cut(peer):
                _reset(connection)
                cut[peer.host] += 1
        for call in [call for call in self._calls if is_cut(call.peer)]:
            del self._calls[call]
        if cut:
            self._trims_left = TRIMS
        return cut

    def _cut(self, reason: CutReason, hosts: Collection[str], blocked: Collection[str]) -> None:
        """Cut all connections of some addresses, and block some of them."""
        now = self._clock()
        cut = self._cut_each(lambda peer: peer.host in hosts)
        for host in hosts:
            if host in blocked:
                self._block(host, now)
            self._emit(ConnectionsCut(address=host, count=cut[host], reason=reason))

    def _block(self, host: str, now: float) -> float:
        block = self._blocks.setdefault(host, _Block(now, 0))
        seconds = min(MAX_BLOCK, BLOCK * (1 << min(block.times, 10)))
        block.times += 1
        block.until = now + seconds
        while len(self._blocks) > MAX_BLOCKED:
            self._blocks.pop(next(iter(self._blocks)))
        return seconds

    def _is_blocked(self, host: str) -> bool:
        block = self._blocks.get(host)
        return block is not None and self._clock() < block.until

    def _forgive(self, now: float) -> None:
        for host, block in list(self._blocks.items()):
            if now >= block.until + FORGIVEN_AFTER:
                del self._blocks[host]

    def _maybe_trim(self, now: float) -> None:
        if self._entered >= TRIM_AFTER:
            self._entered = 0
            self._trims_left = TRIMS
        if self._trims_left and now - self._trimmed_at >= TRIM_INTERVAL:
            self._trims_left -= 1
            self._trimmed_at = now
            self._trim()

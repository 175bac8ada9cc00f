"""Bounds what untrusted clients hold, by cutting the connections of the one that holds most.

gRPC limits the calls of each connection. It has no limit for all of them together, cannot close a
connection, and cannot end a call whose answer waits until the client reads.
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
"""Calls under way, beside the watches. A hundred load balancer nodes that check every 5 s have 60
when each waits for a slow gateway."""

MAX_CONNECTIONS: Final = 256
"""Connections above which the address with most of them loses them."""

SHARE: Final = 16
"""Connections, or calls, that an address may always have without being blocked."""

SENDING_TIMEOUT: Final = 4.0
"""Seconds that an answer may wait until its client reads it. Later it could be wrong."""

MAX_UNDELIVERED: Final = 50
"""Answers in `UNDELIVERED_WINDOW` that a client asks for and does not take. Each leaks some
hundred bytes in grpcio."""

UNDELIVERED_WINDOW: Final = 60.0
BLOCK: Final = 2.0
"""Seconds for which an address is blocked at first; each further time doubles them."""

MAX_BLOCK: Final = 64.0
FORGIVEN_AFTER: Final = 300.0
"""Seconds after the end of a block until the next one is short again."""

MAX_BLOCKED: Final = 1000
"""Addresses whose blocks are remembered."""

CALM_INTERVAL: Final = 0.25
BUSY_INTERVAL: Final = 0.02
"""Seconds between two looks at the connections; the shorter while there are more and more."""

SCAN_INTERVAL: Final = 1.0
"""Seconds after which the clients of many connections are counted again, if their number has hardly
grown: each of them costs some microseconds."""

KERNEL_BUFFER: Final = 32 * 1024
"""Bytes that the kernel holds of a connection until gRPC reads them."""

TRIM_INTERVAL: Final = 5.0
TRIM_AFTER: Final = 1000
"""Calls after which freed memory is given back, at most once in `TRIM_INTERVAL`..."""

TRIMS: Final = 3
"""...and so many times: what a flood held is freed some seconds after its end."""

_ROOM: Final = 0.75
"""The part of a limit that is left in use when it was exceeded."""

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
        is_watch: Whether it is a Watch that was admitted: they have a limit of their own.
        sending_since: When the answer was ready that is being sent now.
        is_overdue: Whether the last look found that it is being sent for too long.
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
    """The connections of a server, found among this process's file descriptors.

    It needs no further descriptor while it works: an attack may have taken all of them. A socket is
    only touched through a duplicate, since gRPC can close it, and open another one, at any moment.
    """

    def __init__(self) -> None:
        self._nothing = os.open(os.devnull, os.O_RDONLY)
        self._duplicate = os.open(os.devnull, os.O_RDONLY)

    def close(self) -> None:
        """Close the descriptors that are kept."""
        os.close(self._duplicate)
        os.close(self._nothing)

    def count(self) -> int:
        """Return how many descriptors are open, as a fast upper bound."""
        return len(self._descriptors())

    def each(self, ports: Collection[int]) -> Iterator[tuple[Peer, socket.socket]]:
        """Yield each connection: its client, and a socket that is valid until the next one.

        Args:
            ports: Of the server.
        """
        for found in self._sockets(ports):
            with suppress(OSError):  # it listens, or is closed already
                host, port = found.getpeername()[:2]
                yield Peer(_plain(host), port), found

    def bound_buffers(self, ports: Collection[int]) -> None:
        """Bound what the kernel holds of each new connection; it can be 6 MiB otherwise.

        Sockets have the settings of the one that listens. gRPC has an option for it, which has no
        effect on a server.

        Args:
            ports: Of the server, before there are connections.
        """
        for found in self._sockets(ports):
            # The kernel doubles the number.
            found.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, KERNEL_BUFFER // 2)

    def _sockets(self, ports: Collection[int]) -> Iterator[socket.socket]:
        try:
            for descriptor in self._descriptors():
                try:
                    os.dup2(descriptor, self._duplicate, inheritable=False)
                    found = socket.socket(fileno=self._duplicate)
                except OSError:  # it is closed, or no socket
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
            names = os.listdir("/dev/fd")  # noqa: PTH208 - a Path for each takes ten times as long
        except OSError:  # all are in use
            return [number for number in range(os.sysconf("SC_OPEN_MAX")) if number not in kept]
        return [int(name) for name in names if int(name) not in kept]


def _reset(connection: socket.socket) -> None:
    """End a connection: gRPC reads its end, and the client gets nothing that still waits."""
    with suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        connection.shutdown(socket.SHUT_RDWR)


def _no_trim() -> None:
    """Do nothing: this allocator has no such function."""


def memory_trimmer() -> Callable[[], object]:
    """Return what gives freed memory back to the system: glibc keeps it otherwise."""
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
    """Counts calls and connections, and gives up those of the heaviest address above a limit.

    Clients with one address (behind a node's SNAT, with host network) are one to it. An address
    with many calls or connections loses all of them and is blocked for a while. If there is none,
    the oldest calls are given up: an honest check is short, so it is rarely among them.

    Args:
        max_watches: Most watches open at once; they are no part of `MAX_CALLS`.
        emit: Receives `ConnectionsCut`; it must not raise.
        clock: Seconds on a monotonic clock.
        connections: Finds the connections; closed by `close`.
        trim: Gives freed memory back.
    """

    def __init__(
        self,
        *,
        max_watches: int,
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
        # Ordered by age.
        self._calls: dict[OpenCall, None] = {}
        self._blocks: dict[str, _Block] = {}
        self._undelivered = _Undelivered(clock())
        self._entered = 0
        self._trims_left = 0
        self._trimmed_at = clock()
        self._count = 0
        self._scanned_count = 0
        self._scanned_at = -math.inf

    @property
    def calls(self) -> int:
        """How many calls are open."""
        return len(self._calls)

    def close(self) -> None:
        """Release what is kept."""
        self._connections.close()

    def serve(self, ports: Iterable[int]) -> None:
        """Watch over the connections to these ports.

        Args:
            ports: Of the server, which listens and accepts nothing yet.
        """
        self._ports = frozenset(ports)
        self._connections.bound_buffers(self._ports)

    def enter(self, name: str) -> OpenCall | None:
        """Count a call.

        Args:
            name: gRPC's name of its client.

        Returns:
            The call, for `leave`; None for one that is not to be answered, since its connection is
            being cut.
        """
        peer = peer_of(name)
        self._entered += 1
        if self._is_blocked(peer.host):
            return None
        call = OpenCall(peer)
        self._calls[call] = None
        if len(self._calls) > self._max_calls:
            self._relieve()
        return call if call in self._calls else None

    def leave(self, call: OpenCall) -> None:
        """Count a call no longer.

        Args:
            call: The call; it may have been forgotten when its connection was cut.
        """
        self._calls.pop(call, None)

    def sending(self, call: OpenCall) -> None:
        """Note that an answer is ready.

        Args:
            call: The call that is answered.
        """
        call.sending_since = self._clock()

    def sent(self, call: OpenCall) -> None:
        """Note that the answer is sent, and the call goes on.

        Args:
            call: The call.
        """
        call.sending_since = None
        call.is_overdue = False

    def undelivered(self, call: OpenCall) -> None:
        """Note that a client did not take its answer.

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
        """Look at the connections again and again."""
        while True:
            is_busy = True
            try:
                is_busy = self.look()
            except Exception:
                _log.exception("guarding failed", extra={"event": "internal_error"})
            await asyncio.sleep(BUSY_INTERVAL if is_busy else CALM_INTERVAL)

    def look(self) -> bool:
        """Cut what is too much, too late or blocked.

        Returns:
            Whether to look again soon.
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
        # Found twice: when this process was stopped for a while, the answer may have been sent.
        overdue = {call.peer for call in late if call.is_overdue}
        for call in late:
            call.is_overdue = True
        if blocked or overdue:
            for peer, connection in self._connections.each(self._ports):
                if peer.host in blocked or peer in overdue:
                    _reset(connection)
            self._forget(lambda peer: peer.host in blocked or peer in overdue)
        if count > MAX_CONNECTIONS:
            self._bound_connections(count, now)
        grows = count > MAX_CONNECTIONS / 2 and count != self._count
        self._count = count
        self._maybe_trim(now)
        return bool(blocked or late) or grows or self.calls > self._max_calls / 2

    def cut_all(self) -> None:
        """Cut every connection, so that the server can stop."""
        for _, connection in self._connections.each(self._ports):
            _reset(connection)

    def _relieve(self) -> None:
        """Give up calls until there is room again: those of the addresses with most of them."""
        counts = Counter(call.peer.host for call in self._calls if not call.is_watch)
        left = len(self._calls)
        hosts: dict[str, int] = {}
        for host, count in counts.most_common():  # of equal ones the oldest first
            if left <= self._max_calls * _ROOM:
                break
            hosts[host] = count
            left -= count
        self._cut("calls", hosts, {host for host, count in hosts.items() if count >= SHARE})

    def _bound_connections(self, count: int, now: float) -> None:
        """Cut the address with most connections, unless the last scan found none with many."""
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

    def _cut(self, reason: CutReason, hosts: Collection[str], blocked: Collection[str]) -> None:
        """Cut all connections of some addresses, and block some of them."""
        now = self._clock()
        cut: Counter[str] = Counter()
        for peer, connection in self._connections.each(self._ports):
            if peer.host in hosts:
                _reset(connection)
                cut[peer.host] += 1
        self._forget(lambda peer: peer.host in hosts)
        for host in hosts:
            seconds = self._block(host, now) if host in blocked else 0.0
            self._emit(
                ConnectionsCut(address=host, count=cut[host], reason=reason, blocked=seconds)
            )

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

    def _forget(self, is_cut: Callable[[Peer], bool]) -> None:
        for call in [call for call in self._calls if is_cut(call.peer)]:
            del self._calls[call]

    def _maybe_trim(self, now: float) -> None:
        if self._entered >= TRIM_AFTER:
            self._entered = 0
            self._trims_left = TRIMS
        if self._trims_left and now - self._trimmed_at >= TRIM_INTERVAL:
            self._trims_left -= 1
            self._trimmed_at = now
            self._trim()

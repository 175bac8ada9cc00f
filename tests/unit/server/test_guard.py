import asyncio
import fcntl
import mmap
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest

from ghealth.events import ConnectionsCut
from ghealth.server import guard
from ghealth.server.guard import Connections, Guard, OpenCall, Peer
from ghealth.server.limits import KERNEL_BUFFER, MAX_CALLS, RECOMMENDED_MEMORY
from tests.support.events import cut
from tests.support.fakes import Recorder
from tests.support.virtual import in_virtual_time

PORT = 25021
MAX_WATCHES = 100
DESCRIPTORS = 1024
AT_START = 40 << 20


class Scene:
    """A guard whose time, memory and connections are the test's."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, used: int = AT_START, others: int = 15, **limits: Any
    ) -> None:
        self.now, self.used, self.others = 1000.0, used, others
        self.sent: dict[Peer, int] = {}
        self.connections, self.recorder, self.trim = Mock(Connections), Recorder(), Mock()
        self.connections.memory.side_effect = lambda: self.used
        self.connections.count.side_effect = lambda: len(self.sent) + self.others
        self.connections.each.side_effect = lambda ports: (
            (peer, peer) for peer in list(self.sent) if set(ports) == {PORT}
        )
        limits = {"limit": RECOMMENDED_MEMORY, "descriptors": DESCRIPTORS} | limits
        self.guard = Guard(
            max_watches=MAX_WATCHES,
            emit=self.recorder,
            clock=lambda: self.now,
            connections=self.connections,
            trim=self.trim,
            **limits,
        )
        self.guard.serve([PORT])
        # The one that was connected first has been silent for longest.
        monkeypatch.setattr(guard, "_traffic", lambda peer: (10_000 - peer.port, self.sent[peer]))
        monkeypatch.setattr(guard, "_reset", self.sent.pop)

    def connect(self, host: str, count: int = 1, *, sent: int = 500) -> list[Peer]:
        first = len(self.sent) + 1
        peers = [Peer(host, first + number) for number in range(count)]
        self.sent |= dict.fromkeys(peers, sent)
        return peers

    def call(self, peer: Peer, count: int = 1) -> list[OpenCall]:
        return [self.guard.enter(f"ipv4:{peer.host}:{peer.port}") for _ in range(count)]

    @property
    def hosts(self) -> set[str]:
        return {peer.host for peer in self.sent}

    @property
    def cuts(self) -> list[ConnectionsCut]:
        return [event for event in self.recorder.events if isinstance(event, ConnectionsCut)]


@pytest.fixture
async def scene(monkeypatch: pytest.MonkeyPatch) -> Scene:
    return Scene(monkeypatch)


ATTACKER, HONEST = cut().address, "10.0.0.66"


def test_the_client_of_a_call_is_known() -> None:
    """The names that gRPC has for clients give the addresses that sockets have."""
    peers = {
        "ipv4:10.0.3.7:4711": Peer("10.0.3.7", 4711),
        "ipv6:%5B::1%5D:4711": Peer("::1", 4711),
        "ipv6:[fe80::1%25eth0]:1": Peer("fe80::1", 1),
        "ipv6:%5B::ffff:10.0.3.7%5D:4711": Peer("10.0.3.7", 4711),
        "unix:": Peer("", 0),
    }
    assert {name: guard.peer_of(name) for name in peers} == peers


def test_the_address_with_most_calls_loses_them(scene: Scene) -> None:
    """Above the limit its connections with most calls are cut, until a quarter is free.

    A Check on a connection with few calls is left alone, also if it shares the address.
    """
    (honest,), *held = scene.connect(HONEST), *zip(scene.connect(ATTACKER, 12), strict=True)
    (beside,) = scene.connect(ATTACKER)
    taken = [*scene.call(honest), *scene.call(beside)]
    for (peer,) in held:
        taken += scene.call(peer, 30)
    assert scene.cuts == [cut(3, reason="calls")]
    assert {honest, beside} < scene.sent.keys()
    assert len(scene.guard._calls) <= (MAX_CALLS + MAX_WATCHES) * guard.ROOM + 30
    for call in taken:
        scene.guard.leave(call)
    assert not scene.guard._calls


def test_all_that_honest_clients_need_is_left_alone(scene: Scene) -> None:
    """A proxy with a hundred watches is left alone, and so are 100 nodes that are not answered."""
    (proxy,) = scene.connect("10.0.0.2")
    for call in scene.call(proxy, MAX_WATCHES):
        call.is_watch = True
    for number in range(100):
        scene.call(scene.connect(f"10.2.0.{number}")[0])
    for _ in range(100):
        scene.now += 10
        scene.guard.look()
    assert scene.cuts == []
    scene.call(scene.connect(ATTACKER)[0], MAX_CALLS - 99)
    assert scene.hosts == {"10.0.0.2", *(f"10.2.0.{number}" for number in range(100))}


def test_of_calls_from_many_addresses_the_oldest_are_cut(scene: Scene) -> None:
    """If no address has more than one call, those that came first go: an honest check is short."""
    peers = [scene.connect(f"10.3.{n // 200}.{n % 200}")[0] for n in range(MAX_CALLS + 101)]
    for peer in peers:
        scene.call(peer)
    gone = len(peers) - len(scene.sent)
    assert gone == pytest.approx((MAX_CALLS + MAX_WATCHES) * (1 - guard.ROOM), abs=1)
    assert list(scene.sent) == peers[gone:]


def test_connections_without_a_call_make_room_before_descriptors_run_out(scene: Scene) -> None:
    """Those of the address with most are cut, the silent ones first; those with a call are not."""
    (honest,) = scene.connect(HONEST)
    room = int((DESCRIPTORS - scene.others) * guard.ROOM)
    held = scene.connect(ATTACKER, room)
    scene.call(held[0])
    scene.guard.look()
    gone = len(held) + 1 - int(room * guard.ROOM)
    assert scene.cuts == [cut(gone, reason="connections")]
    assert {honest, held[0]} < scene.sent.keys()
    assert set(held[1 : 1 + gone]).isdisjoint(scene.sent)


def test_when_memory_is_short_connections_that_sent_most_are_cut(scene: Scene) -> None:
    """New connections may take a share of the memory; of what has sent little, none is cut."""
    scene.guard.look()
    (honest,) = scene.connect(HONEST)
    scene.used += 2 * guard.MEMORY_STEP
    scene.connect(ATTACKER, 4, sent=8 << 20)
    assert scene.guard.look() == guard.BUSY_INTERVAL
    scene.used += guard.MEMORY_STEP
    assert scene.guard.look() == guard.SHORT_INTERVAL
    assert scene.cuts == [cut(3, reason="memory")]
    assert honest in scene.sent


def test_what_stays_is_not_short_until_three_quarters_are_used(scene: Scene) -> None:
    """What is used without new connections counts as usual, until there is little left."""
    scene.guard.look()
    scene.used = RECOMMENDED_MEMORY // 2
    scene.guard.look()
    scene.connect(ATTACKER, 3, sent=1 << 20)
    assert scene.guard.look() == guard.BUSY_INTERVAL
    assert scene.cuts == []
    scene.used = int(RECOMMENDED_MEMORY * 0.9)
    scene.guard.look()
    assert scene.cuts == [cut(3, reason="memory")]


def test_a_connection_that_sent_much_in_a_long_time_is_not_cut(scene: Scene) -> None:
    """A proxy checks on one connection for days, and is not the cause when memory is short."""
    (proxy,) = scene.connect(HONEST, sent=1 << 20)
    for _ in range(5):
        scene.guard.look()
        scene.now += guard.SETTLED_AFTER / 2
        scene.sent[proxy] += 500
    scene.connect(ATTACKER, sent=1 << 20)
    scene.used = RECOMMENDED_MEMORY
    for _ in range(100):
        assert scene.guard.look() == guard.SHORT_INTERVAL or scene.cuts
        scene.now += guard.SHORT_INTERVAL
    assert scene.cuts == [cut(1, reason="memory")]
    assert scene.hosts == {HONEST}


def test_a_program_around_it_may_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory and descriptors of a program that serves inside itself cost no connection.

    They count as usual after a while, also if the program opens more and more files.
    """
    scene = Scene(monkeypatch, limit=None, others=2000, descriptors=1 << 20)
    (proxy,) = scene.connect(HONEST, sent=1 << 20)
    for number in range(40):
        if number > 10:  # all that the proxy has sent is old
            scene.others = 4000 + min(number, 25)
            scene.used = AT_START + (40 << 20)
        interval = scene.guard.look()
        scene.now += guard.SETTLED_AFTER / 4
        scene.sent[proxy] += 100
        if number == 25:
            assert interval == guard.BUSY_INTERVAL
    assert scene.cuts == []
    assert interval == guard.CALM_INTERVAL


def test_without_a_limit_memory_at_the_start_does_not_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A program that serves inside itself may be larger than ghealth alone may become."""
    scene = Scene(monkeypatch, limit=None, used=2 * RECOMMENDED_MEMORY)
    scene.connect(ATTACKER, sent=1 << 20)
    scene.guard.look()
    assert scene.cuts == []
    scene.used += RECOMMENDED_MEMORY
    scene.guard.look()
    assert scene.cuts == [cut(1, reason="memory")]


def test_on_other_systems_nothing_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only Linux lets a process find its connections; elsewhere ghealth serves without limits."""
    monkeypatch.setattr("sys.platform", "darwin")
    recorder = Recorder()
    made = Guard(max_watches=0, descriptors=DESCRIPTORS, limit=None, emit=recorder)
    made.serve([PORT])
    assert made.look() == guard.CALM_INTERVAL
    made.cut_all()
    made.close()
    assert recorder.events == []


def test_at_the_stop_every_connection_is_cut(scene: Scene) -> None:
    """An open connection can keep the server from stopping, so none is left; it emits nothing."""
    scene.connect(HONEST, 3)
    scene.guard.cut_all()
    assert scene.hosts == set()
    assert scene.cuts == []


def test_freed_memory_is_returned(scene: Scene) -> None:
    """While it is calm and more is used than at the start, it is returned every 5 s."""
    scene.guard.look()
    scene.used += 2 * guard.MEMORY_STEP
    for _ in range(100):
        scene.now += guard.TRIM_INTERVAL / 10
        scene.guard.look()
    assert scene.trim.call_count == 10
    scene.used = AT_START
    scene.now += guard.TRIM_INTERVAL
    scene.guard.look()
    assert scene.trim.call_count == 10


def test_a_new_connection_is_inspected_often_until_it_is_settled(scene: Scene) -> None:
    """Its client must have acknowledged SETTINGS then; one that is closed needs no inspection."""
    assert scene.guard.look() == guard.CALM_INTERVAL
    scene.connect(HONEST)
    assert scene.guard.look() == guard.BUSY_INTERVAL
    scene.sent.clear()
    assert scene.guard.look() == guard.CALM_INTERVAL
    scene.connect(HONEST)
    for _ in range(2):
        assert scene.guard.look() == guard.BUSY_INTERVAL
        scene.now += guard.SETTLED_AFTER
    scene.guard.look()
    assert scene.guard.look() == guard.CALM_INTERVAL


@in_virtual_time
async def test_it_waits_for_new_connections_and_a_failure_does_not_end_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A new connection is inspected soon, a failed inspection is repeated, and `close` ends it."""
    scene = Scene(monkeypatch)
    looks: list[float] = []
    real = scene.guard.look

    def look() -> float:
        looks.append(asyncio.get_running_loop().time())
        return real()

    monkeypatch.setattr(scene.guard, "look", look)
    scene.guard.start()
    await asyncio.sleep(1.5)
    ((arrived,), _) = scene.connections.when_new.call_args
    arrived()
    await asyncio.sleep(0.51)
    scene.connections.count.side_effect = OSError
    await asyncio.sleep(1)
    scene.guard.close()
    await asyncio.sleep(2)
    assert [round(at - looks[0], 2) for at in looks[:5]] == [0, 1, 1.52, 2.52, 2.54]
    assert looks[-1] < looks[0] + 3.02
    assert {record.getMessage() for record in caplog.records} == {"guarding failed"}


def test_memory_is_returned_where_the_library_can(monkeypatch: pytest.MonkeyPatch) -> None:
    """The function of glibc is called; with another library nothing is."""
    trims: list[int] = []
    for library in (SimpleNamespace(malloc_trim=trims.append), SimpleNamespace()):
        monkeypatch.setattr(guard, "_libc", library)
        guard._trim()
    assert trims == [0]


# Real sockets.


@pytest.fixture
async def connections() -> AsyncIterator[Connections]:
    made = Connections()
    yield made
    made.close()


@contextmanager
def connected(host: str = "127.0.0.1") -> Iterator[tuple[int, socket.socket, socket.socket]]:
    """Yield a port that is listened on, a client of it, and the server's side of the connection."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with (
        socket.create_server((host, 0), family=family) as listener,
        socket.create_connection(listener.getsockname()[:2]) as client,
        listener.accept()[0] as accepted,
    ):
        yield listener.getsockname()[1], client, accepted


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_the_connections_to_a_port_are_found_and_cut(connections: Connections, host: str) -> None:
    """What a cut one has received is discarded. Those of other ports, and files, are left alone."""
    left, right = socket.socketpair()
    with connected(host) as (port, *ours), connected(host) as (_, *others), left, right:
        before = connections.count()
        ours[0].sendall(bytes(1000))
        found = []
        for peer, connection in connections.each([port]):
            silence, received = guard._traffic(connection)
            assert silence < 60_000
            found.append((peer, received))
            guard._reset(connection)
            guard._reset(connection)  # it is closed already
        assert found == [(Peer(host, ours[0].getsockname()[1]), 1000)]
        assert connections.count() == before
        for end in ours:
            end.settimeout(20)
            with pytest.raises(ConnectionResetError):
                end.recv(1)
        assert list(connections.each([port])) == []
        others[0].sendall(b"x")
        assert others[1].recv(1) == b"x"


def test_files_keep_their_locks(connections: Connections, tmp_path: Path) -> None:
    """Only sockets are duplicated: to close the duplicate of a file would release its locks."""
    lock = "import fcntl, sys; fcntl.lockf(open(sys.argv[1], 'r+'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
    path = tmp_path / "database"
    with path.open("w") as held:
        fcntl.lockf(held, fcntl.LOCK_EX)
        assert list(connections.each([PORT])) == []
        other = subprocess.run([sys.executable, "-c", lock, path], capture_output=True, check=False)
    assert b"BlockingIOError" in other.stderr


async def test_a_closed_guard_touches_no_descriptor() -> None:
    """A call can arrive after the end, and the numbers then belong to other files."""
    made = Guard(max_watches=0, descriptors=DESCRIPTORS, limit=None, emit=Recorder())
    with connected() as (port, client, accepted):
        made.serve([port])
        made.close()
        made.close()
        # They have the lowest free numbers: those of the guard.
        files = [os.open(os.devnull, os.O_RDONLY) for _ in range(3)]
        before = [os.fstat(file) for file in files]
        for _ in range(MAX_CALLS + 1):
            made.enter(f"ipv4:127.0.0.1:{client.getsockname()[1]}")
        assert [os.fstat(file) for file in files] == before
        accepted.sendall(b"x")
        assert client.recv(1) == b"x"
        for file in files:
            os.close(file)


async def test_new_connections_are_noticed_and_the_kernel_buffers_little_of_each(
    connections: Connections,
) -> None:
    """A connection has the buffer of the socket that listens; data of old ones is not noticed."""
    arrived = asyncio.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        connections.listen([listener.getsockname()[1]])
        connections.when_new(arrived.set)
        with socket.create_connection(listener.getsockname()) as client:
            async with asyncio.timeout(20):
                await arrived.wait()
            arrived.clear()
            connections.when_new(arrived.set)
            with listener.accept()[0] as accepted:
                buffer = accepted.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
                client.sendall(b"x")
                for _ in range(10):
                    await asyncio.sleep(0)
    assert buffer == KERNEL_BUFFER
    assert not arrived.is_set()


def test_memory_is_what_a_control_group_counts(connections: Connections) -> None:
    """Memory that this process uses for itself is counted."""
    before = connections.memory()
    size = 32 << 20
    with mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as held:  # never reused memory
        held.write(b"x" * size)
        grown = connections.memory() - before
    assert grown == pytest.approx(size, rel=0.2)


def test_without_descriptors_connections_are_found(
    connections: Connections, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No further descriptor is needed, also where the list of them cannot be had."""
    with connected() as (port, client, _):
        for name in ("dup", "open", "listdir"):
            monkeypatch.setattr(os, name, Mock(side_effect=OSError(24, "Too many open files")))
        (found,) = [peer for peer, _ in connections.each([port])]
        connections.memory()
        monkeypatch.undo()
        assert found.port == client.getsockname()[1]

import asyncio
import ctypes
import os
import socket
from collections.abc import Collection, Iterator
from contextlib import suppress
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest

from ghealth.events import ConnectionsCut
from ghealth.server import guard as module
from ghealth.server.guard import (
    BLOCK,
    BUSY_INTERVAL,
    CALM_INTERVAL,
    FORGIVEN_AFTER,
    IDLE_TIME,
    KERNEL_BUFFER,
    MAX_BLOCK,
    MAX_BLOCKED,
    MAX_CALLS,
    MAX_CONNECTIONS,
    MAX_UNDELIVERED,
    SCAN_INTERVAL,
    SENDING_TIMEOUT,
    SHARE,
    TRIM_AFTER,
    TRIM_INTERVAL,
    TRIMS,
    UNDELIVERED_WINDOW,
    Connections,
    Guard,
    OpenCall,
    Peer,
    memory_trimmer,
    peer_of,
)
from tests.support.fakes import Recorder
from tests.support.virtual import in_virtual_time

PORT = 25021
MAX_WATCHES = 100
DESCRIPTORS = 1024


class FakeSocket:
    """A connection that can be cut."""

    def __init__(self, peers: list[Peer], peer: Peer) -> None:
        self._peers, self._peer = peers, peer

    def setsockopt(self, *_: object) -> None:
        pass

    def shutdown(self, _how: int) -> None:
        self._peers.remove(self._peer)


class FakeConnections(Connections):
    """Connections that are a list of their clients."""

    def __init__(self) -> None:
        self.peers: list[Peer] = []
        self.scans = 0
        self.breaks = False

    def close(self) -> None:
        self.peers.clear()

    def bound_buffers(self, ports: Collection[int]) -> None:
        assert set(ports) == {PORT}

    def count(self) -> int:
        if self.breaks:
            raise OSError
        return len(self.peers) + 15

    def each(self, ports: Collection[int]) -> Iterator[tuple[Peer, socket.socket]]:
        assert set(ports) == {PORT}
        self.scans += 1
        for peer in list(self.peers):
            found: Any = FakeSocket(self.peers, peer)
            yield peer, found


class Scene:
    """A guard whose time and connections are the test's."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.trims = 0
        self.connections = FakeConnections()
        self.recorder = Recorder()
        self.guard = Guard(
            max_watches=MAX_WATCHES,
            descriptors=DESCRIPTORS,
            emit=self.recorder,
            clock=lambda: self.now,
            connections=self.connections,
            trim=self.trim,
        )
        self.guard.serve([PORT])

    def trim(self) -> None:
        self.trims += 1

    def connect(self, host: str, count: int = 1) -> list[Peer]:
        first = len(self.connections.peers) + 1
        peers = [Peer(host, first + number) for number in range(count)]
        self.connections.peers += peers
        return peers

    def call(self, peer: Peer) -> OpenCall | None:
        return self.guard.enter(f"ipv4:{peer.host}:{peer.port}")

    def calls(self, peer: Peer, count: int) -> list[OpenCall]:
        return [call for call in (self.call(peer) for _ in range(count)) if call]

    @property
    def hosts(self) -> set[str]:
        return {peer.host for peer in self.connections.peers}

    @property
    def cuts(self) -> list[ConnectionsCut]:
        return [event for event in self.recorder.events if isinstance(event, ConnectionsCut)]


ATTACKER, OTHER, HONEST = "10.0.0.66", "10.0.0.67", "10.0.0.1"


@pytest.mark.parametrize(
    ("name", "peer"),
    [
        ("ipv4:10.0.3.7:4711", Peer("10.0.3.7", 4711)),
        ("ipv6:%5B::1%5D:4711", Peer("::1", 4711)),
        ("ipv6:[fe80::1%25eth0]:1", Peer("fe80::1", 1)),
        ("ipv6:%5B::ffff:10.0.3.7%5D:4711", Peer("10.0.3.7", 4711)),
        ("unix:", Peer("", 0)),
    ],
)
def test_the_client_of_a_call_is_known(name: str, peer: Peer) -> None:
    """The names that gRPC has for clients give the addresses that sockets have."""
    assert peer_of(name) == peer


def test_the_address_with_most_calls_loses_them() -> None:
    """Above the limit its connections are cut, all others keep theirs."""
    scene = Scene()
    (honest,), (held, *_) = scene.connect(HONEST), scene.connect(ATTACKER, 20)
    watching = scene.call(honest)
    taken = scene.calls(held, MAX_CALLS + MAX_WATCHES)
    assert scene.hosts == {HONEST}
    assert len(taken) == MAX_CALLS + MAX_WATCHES - 1
    assert scene.guard.calls == 1
    assert scene.cuts == [ConnectionsCut(address=ATTACKER, count=20, reason="calls")]
    assert watching is not None
    for call in (watching, *taken):
        scene.guard.leave(call)
    assert scene.guard.calls == 0


def test_watches_do_not_count_against_their_client() -> None:
    """A proxy with a hundred watches is not the heaviest address; floods of fewer calls are."""
    scene = Scene()
    (proxy,) = scene.connect(HONEST)
    for call in scene.calls(proxy, MAX_WATCHES):
        call.is_watch = True
    for number in range(5):
        (held,) = scene.connect(f"10.0.0.{100 + number}")
        scene.calls(held, MAX_CALLS // 5 + 1)
    assert scene.hosts == {HONEST, "10.0.0.102", "10.0.0.103", "10.0.0.104"}
    assert {cut.reason for cut in scene.cuts} == {"calls"}


def test_all_that_honest_clients_need_is_left_alone() -> None:
    """A hundred watches, and a hundred load balancer nodes that wait on a slow gateway."""
    scene = Scene()
    for number in range(5):
        (peer,) = scene.connect(f"10.1.0.{number}")
        for call in scene.calls(peer, 20):
            call.is_watch = True
    (nat,) = scene.connect(HONEST)
    assert len(scene.calls(nat, 100)) == 100
    for number in range(100):
        assert scene.call(scene.connect(f"10.2.0.{number}")[0])
    for _ in range(100):
        scene.now += 10
        scene.guard.look()
    assert scene.cuts == []
    assert scene.guard.calls == 300


def test_of_many_light_addresses_the_oldest_calls_go_and_none_is_blocked() -> None:
    """A flood from many addresses is cut in one go, and an address with few calls may return."""
    scene = Scene()
    peers = [scene.connect(f"10.3.{n // 200}.{n % 200}")[0] for n in range(MAX_CALLS + 100)]
    for peer in peers:
        assert scene.call(peer)
    (late,) = scene.connect(HONEST)
    assert scene.call(late)
    assert scene.guard.calls == pytest.approx((MAX_CALLS + MAX_WATCHES) * 0.75, abs=1)
    assert late in scene.connections.peers
    assert peers[0] not in scene.connections.peers
    assert scene.guard._blocks == {}
    assert scene.connections.scans == 1
    assert scene.call(peers[0])


def test_a_blocked_address_is_cut_again_and_again_and_each_time_for_longer() -> None:
    """A block doubles up to a minute, and is short again after a quiet time."""
    scene = Scene()
    lengths = []
    for _ in range(8):
        (held, *_) = scene.connect(ATTACKER, 2)
        scene.calls(held, MAX_CALLS + MAX_WATCHES + 1)
        lengths.append(scene.guard._blocks[ATTACKER].until - scene.now)
        (again,) = scene.connect(ATTACKER)
        assert scene.call(again) is None
        assert scene.guard.look()
        assert scene.hosts == set()
        scene.now += lengths[-1]
    assert lengths == [2, 4, 8, 16, 32, 64, MAX_BLOCK, MAX_BLOCK]
    scene.now += FORGIVEN_AFTER
    assert not scene.guard.look()
    scene.calls(scene.connect(ATTACKER)[0], MAX_CALLS + MAX_WATCHES + 1)
    assert scene.guard._blocks[ATTACKER].until == scene.now + BLOCK


def test_few_blocks_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """The list of blocked addresses is bounded: the oldest are dropped."""
    monkeypatch.setattr(module, "MAX_CONNECTIONS", SHARE)
    scene = Scene()
    for number in range(MAX_BLOCKED + 10):
        scene.connect(f"10.4.{number // 200}.{number % 200}", SHARE + 1)
        scene.guard.look()
        scene.connections.peers.clear()
    assert len(scene.guard._blocks) == MAX_BLOCKED


def test_the_address_with_most_connections_loses_them() -> None:
    """Above the limit they are cut, whatever they do."""
    scene = Scene()
    scene.connect(HONEST, 5)
    scene.connect(ATTACKER, MAX_CONNECTIONS - 5)
    scene.guard.look()
    assert scene.cuts == []
    scene.connect(OTHER)
    assert scene.guard.look()
    assert scene.hosts == {HONEST, OTHER}
    assert scene.cuts == [
        ConnectionsCut(address=ATTACKER, count=MAX_CONNECTIONS - 5, reason="connections")
    ]


def test_many_clients_with_few_connections_are_left_alone() -> None:
    """A mesh of hundreds of clients has many connections, and none of them is a flood."""
    scene = Scene()
    for number in range(MAX_CONNECTIONS):
        scene.connect(f"10.5.{number // 200}.{number % 200}", 2)
    assert scene.guard.look()
    assert scene.cuts == []


def test_many_connections_that_stay_cost_one_scan_a_second() -> None:
    """A mesh is scanned once a second, and at once when it has grown by what a flood needs."""
    scene = Scene()
    for number in range(MAX_CONNECTIONS):
        scene.connect(f"10.5.{number // 200}.{number % 200}", 2)
    assert scene.guard.look()
    for _ in range(20):
        scene.now += BUSY_INTERVAL
        assert not scene.guard.look()
    assert scene.connections.scans == 1
    scene.now += SCAN_INTERVAL
    scene.guard.look()
    assert scene.connections.scans == 2
    scene.connect(OTHER, SHARE + 1)
    scene.connect(ATTACKER, SHARE + 20)
    assert scene.guard.look()
    assert scene.guard.look()
    assert {cut.address for cut in scene.cuts} == {OTHER, ATTACKER}


def test_connections_that_come_again_are_scanned_again() -> None:
    """After some have gone, their number does not hide those of an attacker."""
    scene = Scene()
    for number in range(MAX_CONNECTIONS):
        scene.connect(f"10.5.{number // 200}.{number % 200}", 2)
    scene.guard.look()
    del scene.connections.peers[MAX_CONNECTIONS + 1 :]
    scene.guard.look()
    scene.connect(ATTACKER, SHARE + 1)
    scene.guard.look()
    assert ATTACKER not in scene.hosts


def test_connections_without_a_call_make_room_before_descriptors_run_out() -> None:
    """Many addresses with few connections cannot keep others out; open calls and watches stay."""
    scene = Scene()
    peers = [scene.connect(f"10.6.{n // 200}.{n % 200}")[0] for n in range(DESCRIPTORS // 2)]
    calls = [scene.call(peer) for peer in peers[:50]]
    scene.connect(OTHER, SHARE)
    scene.guard.look()
    scene.connect(ATTACKER, SHARE)
    scene.now += IDLE_TIME
    assert scene.guard.look()
    assert scene.cuts == []
    more = [scene.connect(f"10.7.{n // 200}.{n % 200}")[0] for n in range(DESCRIPTORS // 4)]
    scene.guard.look()
    scene.now += IDLE_TIME
    (new,) = scene.connect(HONEST)
    assert scene.guard.look()
    assert len(scene.connections.peers) == pytest.approx(DESCRIPTORS * 0.75**2, abs=16)
    assert scene.hosts.isdisjoint({ATTACKER, OTHER})
    assert all(call in scene.guard._calls for call in calls)
    assert {new, *peers[:50]} <= set(scene.connections.peers)
    assert more[-1] in scene.connections.peers
    assert {cut.reason for cut in scene.cuts} == {"descriptors in use"}


def test_a_call_between_two_inspections_ends_the_idle_time() -> None:
    """A connection counts as idle from its last call, however long it was idle before."""
    scene = Scene()
    peers = [scene.connect(f"10.6.{n // 200}.{n % 200}")[0] for n in range(DESCRIPTORS)]
    scene.guard.look()
    scene.now += IDLE_TIME
    recent = peers[:100]
    for peer in recent:
        call = scene.call(peer)
        assert call
        scene.guard.leave(call)
    scene.guard.look()
    assert len(scene.connections.peers) < DESCRIPTORS
    assert set(recent) <= set(scene.connections.peers)


def test_an_answer_that_waits_too_long_is_cut() -> None:
    """Its connection ends before the answer is wrong; the other calls on it were the client's."""
    scene = Scene()
    peers = scene.connect(ATTACKER, 2)
    late, watching, sent = (scene.call(peer) for peer in (peers[0], peers[1], peers[1]))
    assert late
    assert watching
    assert sent
    scene.guard.sending(late)
    scene.guard.sending(sent)
    scene.guard.sent(sent)
    scene.now += SENDING_TIMEOUT
    scene.guard.look()
    assert scene.connections.peers == peers
    scene.now += 0.1
    assert scene.guard.look()
    assert scene.connections.peers == peers
    scene.guard.look()
    assert scene.connections.peers == peers[1:]
    assert scene.guard.calls == 2
    assert scene.cuts == []


def test_an_answer_that_was_sent_after_all_is_not_cut() -> None:
    """After a SIGSTOP, time has passed before gRPC reports that the answer was sent."""
    scene = Scene()
    peers = scene.connect(HONEST)
    call = scene.call(peers[0])
    assert call
    for _ in range(2):
        scene.guard.sending(call)
        scene.now += 3600
        assert scene.guard.look()
        scene.guard.sent(call)
        assert not scene.guard.look()
    assert scene.connections.peers == peers


def test_a_client_that_does_not_take_its_answers_is_cut() -> None:
    """Many in a minute are too many; the same over a longer time are not."""
    scene = Scene()
    (peer,) = scene.connect(ATTACKER)

    def undelivered() -> None:
        call = scene.call(peer)
        assert call
        scene.guard.undelivered(call)  # it went away before its answer was ready
        scene.guard.sending(call)
        scene.guard.undelivered(call)
        scene.guard.leave(call)
        scene.guard.undelivered(call)

    for _ in range(3):
        for _ in range(MAX_UNDELIVERED):
            undelivered()
        scene.now += UNDELIVERED_WINDOW
    assert scene.cuts == []
    for _ in range(MAX_UNDELIVERED + 1):
        undelivered()
    assert scene.cuts == [ConnectionsCut(address=ATTACKER, count=1, reason="undelivered answers")]


def test_at_the_stop_every_connection_is_cut() -> None:
    """Whatever address it has."""
    scene = Scene()
    scene.connect(HONEST, 2)
    scene.connect(ATTACKER, 2)
    scene.guard.cut_all()
    assert scene.hosts == set()
    scene.guard.close()


def test_freed_memory_is_given_back_after_many_calls() -> None:
    """Few calls leave nothing to give back; many are followed by a few trims, as are cuts."""
    scene = Scene()
    (peer,) = scene.connect(HONEST)

    def call(count: int) -> None:
        for _ in range(count):
            found = scene.call(peer)
            assert found
            scene.guard.leave(found)

    def looks(count: int) -> None:
        for _ in range(count):
            scene.now += TRIM_INTERVAL
            scene.guard.look()
            scene.guard.look()

    call(TRIM_AFTER - 1)
    looks(2)
    assert scene.trims == 0
    call(1)
    scene.guard.look()
    assert scene.trims == 1
    looks(1)
    call(TRIM_AFTER)
    scene.guard.look()
    assert scene.trims == 2
    looks(10)
    assert scene.trims == 2 + TRIMS
    scene.connect(ATTACKER, MAX_CONNECTIONS + 1)
    looks(10)
    assert scene.trims == 2 + 2 * TRIMS


@in_virtual_time
async def test_it_looks_often_while_there_is_much_and_a_failure_does_not_end_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The time between two looks is short while there are more and more, or while it fails."""
    scene = Scene()
    loop = asyncio.get_running_loop()
    looks: list[float] = []
    real = scene.guard.look

    def look() -> bool:
        looks.append(loop.time())
        if scene.connections.peers:
            scene.connect(HONEST)
        return real()

    scene.guard.look = look  # type: ignore[method-assign]
    running = asyncio.create_task(scene.guard.run())
    await asyncio.sleep(CALM_INTERVAL * 1.5)
    scene.connect(HONEST, MAX_CONNECTIONS // 2)
    await asyncio.sleep(CALM_INTERVAL)
    scene.connections.breaks = True
    await asyncio.sleep(BUSY_INTERVAL)
    running.cancel()
    steps = [round(b - a, 3) for a, b in pairwise(looks)]
    assert steps[:2] == [CALM_INTERVAL] * 2
    assert set(steps[2:]) == {BUSY_INTERVAL}
    assert {record.getMessage() for record in caplog.records} == {"guarding failed"}


def test_memory_is_given_back_where_the_library_can(monkeypatch: pytest.MonkeyPatch) -> None:
    """The function of glibc is called; with another library nothing is."""
    trims: list[int] = []
    libraries = iter([SimpleNamespace(malloc_trim=trims.append), SimpleNamespace()])
    monkeypatch.setattr(ctypes, "CDLL", lambda _name: next(libraries))
    memory_trimmer()()
    memory_trimmer()()
    assert trims == [0]


# Real sockets.


@pytest.fixture
def connections() -> Iterator[Connections]:
    made = Connections()
    yield made
    made.close()


Pair = tuple[socket.socket, socket.socket]


def connected(listener: socket.socket) -> Pair:
    client = socket.create_connection(listener.getsockname()[:2])
    return client, listener.accept()[0]


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_the_connections_to_a_port_are_found_and_cut(connections: Connections, host: str) -> None:
    """Those of other ports, listening sockets, pipes and files are left alone."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with (
        socket.create_server((host, 0), family=family) as listener,
        socket.create_server((host, 0), family=family) as other,
    ):
        ours, others = connected(listener), connected(other)
        left, right = socket.socketpair()
        before = connections.count()
        port = listener.getsockname()[1]
        found = []
        for peer, connection in connections.each([port]):
            found.append(peer)
            module._reset(connection)
            module._reset(connection)  # it is closed already
        assert found == [Peer(host, ours[0].getsockname()[1])]
        assert connections.count() == before
        assert ours[1].recv(1) == b""
        ours[1].close()
        assert list(connections.each([port])) == []
        assert ours[0].recv(1) == b""
        others[0].sendall(b"x")
        assert others[1].recv(1) == b"x"
        for sock in (*ours, *others, left, right):
            sock.close()


def test_the_kernel_holds_little_of_each_connection(connections: Connections) -> None:
    """A connection has the buffer of the socket that listens, and it does not grow."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        connections.bound_buffers([listener.getsockname()[1]])
        client, accepted = connected(listener)
        client.setblocking(False)
        with suppress(BlockingIOError):
            for _ in range(10_000):
                client.send(bytes(4096))
        size = accepted.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
        assert size == KERNEL_BUFFER
        client.close()
        accepted.close()


def test_without_descriptors_connections_are_found(
    connections: Connections, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No further descriptor is needed, also where the list of them cannot be had."""

    def refuse(*_: object) -> Any:
        raise OSError(24, "Too many open files")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        pair = connected(listener)
        monkeypatch.setattr(os, "listdir", refuse)
        for name in ("dup", "open"):
            monkeypatch.setattr(os, name, refuse)
        (found,) = [peer for peer, _ in connections.each([listener.getsockname()[1]])]
        monkeypatch.undo()
        assert found.port == pair[0].getsockname()[1]
        for sock in pair:
            sock.close()

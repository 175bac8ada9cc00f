import asyncio
import errno
import os
import socket
import threading
from contextlib import closing
from typing import Any

import pytest

from ghealth.address import Address
from ghealth.check import http2
from ghealth.check.addresses import Server
from tests.support.peers import nobody, repeats, target

FOREVER = 60.0
SETTINGS = b"\0\0\0\4\0\0\0\0\0"


def failure(server: Server, seconds: float = FOREVER) -> str:
    """Return how a connection fails."""
    with pytest.raises((http2.Http2Error, TimeoutError)) as raised:
        http2.connect(server, http2.Deadline(seconds))
    return str(raised.value) or "timeout"


@pytest.mark.parametrize(
    ("server", "cause"),
    [
        (Server.parse("ghealth.invalid:1"), "name does not resolve"),
        (Server("", Address("255.255.255.255", 1)), "cannot connect: Network is unreachable"),
        (Server.parse("unix:/nonexistent"), "cannot connect: No such file or directory"),
        (Server.parse("unix-abstract:ghealth-nobody"), "connection refused"),
    ],
)
def test_a_server_that_cannot_be_reached(server: Server, cause: str) -> None:
    """The cause distinguishes a name without an address from an address without a route."""
    assert failure(server) == cause


def found(monkeypatch: pytest.MonkeyPatch, *hosts: str) -> Server:
    """Have a name with these addresses."""

    def getaddrinfo(_name: bytes, port: int, **options: Any) -> list[Any]:
        if options["flags"]:
            raise socket.gaierror
        return [(socket.AF_INET, 0, 0, "", (host, port)) for host in hosts]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return Server.parse("many.example:1")


class Sock(socket.socket):
    """A socket whose address decides how its connection fails."""

    def connect(self, address: Any) -> None:
        host = address[0]
        if host == "no-route":
            raise OSError(errno.EADDRNOTAVAIL, "Cannot assign requested address")
        if host == "refuses":
            raise ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")
        if host == "silent":
            raise TimeoutError("timed out")
        if host == "silent kernel":
            raise TimeoutError(errno.ETIMEDOUT, "Connection timed out")


@pytest.mark.parametrize(
    ("hosts", "cause"),
    [
        ((), "name does not resolve"),
        (("refuses", "no-route"), "connection refused"),
        (("no-route",), "cannot connect: Cannot assign requested address"),
        (("silent kernel", "refuses"), "cannot connect: Connection timed out"),
    ],
)
def test_the_first_of_several_addresses_has_the_cause(
    monkeypatch: pytest.MonkeyPatch, hosts: tuple[str, ...], cause: str
) -> None:
    """The resolver sorts addresses that this machine cannot use to the end (RFC 6724, rule 1)."""
    server = found(monkeypatch, *hosts)
    monkeypatch.setattr(socket, "socket", Sock)
    assert failure(server) == cause


def test_an_address_that_does_not_answer_leaves_time_for_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each address has its share of the time that is left."""
    shares: list[float] = []

    class Timed(Sock):
        def settimeout(self, seconds: float | None) -> None:
            assert seconds is not None
            shares.append(seconds)

    server = found(monkeypatch, "silent", "refuses", "works")
    monkeypatch.setattr(socket, "socket", Timed)
    http2.connect(server, http2.Deadline(30)).close()
    assert [round(seconds) for seconds in shares] == [10, 15, 30]


def test_a_look_up_ends_with_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name server that does not answer blocks a thread that the process does not wait for."""
    ended = threading.Event()

    def getaddrinfo(_name: bytes, _port: int, **options: Any) -> list[Any]:
        if options["flags"]:
            raise socket.gaierror
        ended.wait(FOREVER)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    before = set(threading.enumerate())
    assert failure(Server.parse("slow.example:1"), 0.05) == "no answer from the name server"
    assert [thread.daemon for thread in set(threading.enumerate()) - before] == [True]
    ended.set()


def test_a_look_up_that_cannot_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that may not have more threads cannot look up names; addresses need none."""

    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    assert failure(Server.parse("a.example:1")) == "cannot connect: no thread can be started"
    with nobody() as port:
        assert failure(Server.parse(f"127.0.0.1:{port}")) == "connection refused"


def test_without_a_descriptor_there_is_no_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    """A socket that cannot be created is reported like one that cannot connect."""

    def no_socket(*_: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(socket, "socket", no_socket)
    assert failure(Server.parse("127.0.0.1:1")) == "cannot connect: Too many open files"


def test_a_deadline_that_has_passed_is_a_timeout() -> None:
    """The deadline decides, even if the server can be reached right after it."""
    with nobody() as port:
        assert failure(Server.parse(f"127.0.0.1:{port}"), 0) == "timeout"


async def test_a_server_that_drips_does_not_lengthen_the_time() -> None:
    """The deadline is one for all that is received, not one for each piece."""
    async with target(repeats(b"\0", every=0.15), reads=False) as peer:
        server = Server.parse(f"127.0.0.1:{peer.port}")
        with pytest.raises(TimeoutError):
            await asyncio.to_thread(http2.connect, server, http2.Deadline(0.3), is_grpc=True)


def test_a_machine_that_is_gone_ends_a_connection() -> None:
    """A Watch has no deadline; TCP asks whether the other side is there, within a minute."""
    options = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = Server.parse(f"127.0.0.1:{listening.getsockname()[1]}")
        with closing(http2.connect(server, http2.Deadline(FOREVER))) as connection:
            sock = connection._sock
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            idle, interval, count = [sock.getsockopt(socket.IPPROTO_TCP, one) for one in options]
    assert idle + interval * count < 60


@pytest.mark.parametrize(
    ("error", "received", "cause"),
    [
        (None, b"", "timeout"),
        (errno.ETIMEDOUT, b"", "cannot connect: Connection timed out"),
        (errno.EPIPE, b"", "connection reset"),
        (errno.EPIPE, b"HTTP/1.1 400", "answer is not HTTP/2"),
        (errno.EPIPE, SETTINGS, ""),
    ],
)
def test_a_connection_that_breaks(error: int | None, received: bytes, cause: str) -> None:
    """The kernel's timeout is not the deadline's, and what arrived before the end counts."""

    class Broken(socket.socket):
        def sendall(self, *_: object) -> None:
            raise TimeoutError if error is None else OSError(error, os.strerror(error))

        def recv(self, *_: object) -> bytes:
            return received

    found = ""
    with Broken() as sock:
        try:
            http2.Connection(sock, http2.Deadline(FOREVER)).wait_for_settings()
        except (http2.Http2Error, TimeoutError) as failed:
            found = str(failed) or "timeout"
    assert found == cause

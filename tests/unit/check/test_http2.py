import asyncio
import errno
import socket
import threading
from contextlib import closing
from typing import Any
from unittest.mock import Mock

import pytest

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
        (Server.parse("255.255.255.255:1"), "cannot connect: Network is unreachable"),
        (Server.parse("unix:/nonexistent"), "cannot connect: No such file or directory"),
        (Server.parse("unix-abstract:ghealth-nobody"), "connection refused"),
    ],
)
def test_a_server_that_cannot_be_reached(server: Server, cause: str) -> None:
    """The cause distinguishes a name without an address from an address without a route."""
    assert failure(server) == cause


FAILURES = {
    "no-route": OSError(errno.EADDRNOTAVAIL, "Cannot assign requested address"),
    "refuses": ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"),
    "silent": TimeoutError("timed out"),
    "silent-kernel": TimeoutError(errno.ETIMEDOUT, "Connection timed out"),
}


@pytest.fixture
def shares(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The timeouts of connections. The parts of a name are its addresses; each fails by itself."""
    seen: list[float] = []

    def getaddrinfo(name: bytes, port: int, *, flags: int, **_: Any) -> list[Any]:
        if flags:
            raise socket.gaierror
        return [(socket.AF_INET, 0, 0, "", (host, port)) for host in name.decode().split(".")]

    def connect(sock: socket.socket, address: Any) -> None:
        seen.append(sock.gettimeout() or 0)
        if address[0] in FAILURES:
            raise FAILURES[address[0]]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr(socket.socket, "connect", connect)
    return seen


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("refuses.no-route", "connection refused"),
        ("no-route", "cannot connect: Cannot assign requested address"),
        ("silent-kernel.refuses", "cannot connect: Connection timed out"),
    ],
)
@pytest.mark.usefixtures("shares")
def test_the_first_of_several_addresses_has_the_cause(name: str, cause: str) -> None:
    """The resolver sorts addresses that this machine cannot use to the end (RFC 6724, rule 1)."""
    assert failure(Server.parse(f"{name}:1")) == cause


def test_an_address_that_does_not_answer_leaves_time_for_the_next(shares: list[float]) -> None:
    """Each address has its share of the time that is left."""
    http2.connect(Server.parse("silent.refuses.works:1"), http2.Deadline(30)).close()
    assert [round(seconds) for seconds in shares] == [10, 15, 30]


def test_a_look_up_ends_with_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name server that does not answer blocks a thread that the process does not wait for."""
    ended, before = threading.Event(), set(threading.enumerate())

    def getaddrinfo(*_: Any, flags: int, **__: Any) -> None:
        if not flags:
            ended.wait(FOREVER)
        raise socket.gaierror

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    assert failure(Server.parse("many.example:1"), 0.05) == "no answer from the name server"
    assert [thread.daemon for thread in set(threading.enumerate()) - before] == [True]
    ended.set()


def test_a_look_up_that_cannot_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that may not have more threads cannot look up names; addresses need none."""
    monkeypatch.setattr(threading.Thread, "start", Mock(side_effect=RuntimeError))
    assert failure(Server.parse("a.example:1")) == "cannot connect: no thread can be started"
    with nobody() as port:
        assert failure(Server.parse(f"127.0.0.1:{port}")) == "connection refused"


def test_without_a_descriptor_there_is_no_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    """A socket that cannot be created is reported like one that cannot connect."""
    error = OSError(errno.EMFILE, "Too many open files")
    monkeypatch.setattr(socket, "socket", Mock(side_effect=error))
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
        (TimeoutError(), b"", "timeout"),
        (OSError(errno.ETIMEDOUT, "Too late"), b"", "cannot connect: Too late"),
        (OSError(errno.EPIPE, "Broken pipe"), b"", "connection reset"),
        (OSError(errno.EPIPE, "Broken pipe"), b"HTTP/1.1 400", "answer is not HTTP/2"),
        (OSError(errno.EPIPE, "Broken pipe"), SETTINGS, ""),
    ],
)
def test_a_connection_that_breaks(error: OSError, received: bytes, cause: str) -> None:
    """The kernel's timeout is not the deadline's, and what arrived before the end counts."""
    sock = Mock(sendall=Mock(side_effect=error), recv=Mock(return_value=received))
    found = ""
    try:
        http2.Connection(sock, http2.Deadline(FOREVER)).wait_for_settings()
    except (http2.Http2Error, TimeoutError) as failed:
        found = str(failed) or "timeout"
    assert found == cause

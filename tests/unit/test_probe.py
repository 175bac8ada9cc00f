import asyncio
import base64
import contextlib
import errno
import itertools
import logging
import socket
import ssl
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import h11
import pytest
import trustme

from ghealth import __version__, probe, reasons
from ghealth.checker import Checker
from ghealth.environment import target_of
from ghealth.matcher import HTTP_CODES, Matcher
from ghealth.probe import HttpProbe, ProbeResult, trust
from ghealth.status import GATEWAY, Status
from tests.support.fakes import Notes
from tests.support.peers import (
    Behaviour,
    Target,
    answers,
    is_silent,
    nobody,
    repeats,
    resets,
    says,
    target,
)
from tests.support.stopwatch import Stopwatch

figures = logging.getLogger(__name__)
"""Shown by `pytest --log-cli-level=info`."""

SHORT, LONG = 0.3, 20.0
"""Seconds for who never comes to an end, and for who does."""

CODES = Matcher.parse("200-299", HTTP_CODES)


async def probed(
    url: str, codes: Matcher = CODES, headers: dict[str, str] | None = None
) -> ProbeResult:
    """Make one attempt."""
    aim = target_of(url)
    probe = HttpProbe(aim, success_codes=codes, headers=headers or {}, tls=trust([aim]))
    return await probe()


def probe_of(gateway: Target) -> HttpProbe:
    """Make a probe of a target."""
    aim = target_of(f"http://127.0.0.1:{gateway.port}/")
    return HttpProbe(aim, success_codes=CODES, headers={}, tls=None)


async def request_to(behaving: Target, **options: Any) -> list[str]:
    """Tell the lines of the request that one attempt sends."""
    await probed(f"http://127.0.0.1:{behaving.port}/healthz/ready?full=1", **options)
    return behaving.requests[-1].decode().strip().split("\r\n")


@pytest.mark.parametrize(
    ("code", "ready"), [(200, True), (204, True), (299, True), (301, False), (404, False)]
)
async def test_the_status_code_decides(code: int, ready: bool) -> None:
    """A success code is ready, any other is not, and a redirect is not followed."""
    async with target(answers(code, b"location: /elsewhere\r\n")) as gateway:
        found = await probed(f"http://127.0.0.1:{gateway.port}/")
    assert found == ProbeResult(ready, f"gateway answered {code}")
    assert len(gateway.requests) == 1


CLOSED_EARLY = (
    says(b""),
    says(b"SSH-2.0-OpenSSH_9.2\r\n"),
    says(b"HTTP/1.1 20"),
    says(b"HTTP/1.1 200 OK\r\nserver: x"),
)
NOT_HTTP = (
    says(b"garbage\r\n\r\n"),
    says(b"HTTP/1.1 99 OK\r\n\r\n"),
    says(b"\0" * 200_000),
    says(b"HTTP/1.1 101 Switching\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n"),
    repeats(b"x: y\r\n" * 1000, first=b"HTTP/1.1 200 OK\r\n"),
)
ENDLESS = (
    is_silent,
    repeats(b"H", every=0.05),
    repeats(b"x: y\r\n", first=b"HTTP/1.1 200 OK\r\n", every=0.05),
    repeats(b"HTTP/1.1 100 Continue\r\n\r\n", every=0.001),
)


@pytest.mark.parametrize(
    ("behaviour", "seconds", "reason"),
    [
        *((behaviour, LONG, reasons.CLOSED) for behaviour in CLOSED_EARLY),
        *((behaviour, LONG, reasons.NOT_HTTP) for behaviour in NOT_HTTP),
        *((behaviour, SHORT, reasons.no_answer_within(SHORT)) for behaviour in ENDLESS),
        (resets, LONG, reasons.RESET),
    ],
)
async def test_every_misbehaviour_is_a_value_in_time(
    behaviour: Behaviour, seconds: float, reason: str
) -> None:
    """However a peer misbehaves, the check reads NOT_SERVING with a fixed reason, in time."""
    async with target(behaviour) as gateway:
        checker = Checker(
            {GATEWAY: probe_of(gateway)},
            probe_timeout=seconds,
            cache_ttl=1,
            watch_interval=1,
            observer=Notes(),
        )
        taking = Stopwatch()
        health = await checker.check(GATEWAY)
        figures.info("%s in %.3f s", health.reason, taking.on_the_wall)
        assert taking.seconds < SHORT + 0.2
    assert (health.status, health.reason) == (Status.NOT_SERVING, reason)


async def test_a_refused_connection_is_a_value() -> None:
    """Nobody listening is a reason."""
    with nobody() as port:
        for host in ("127.0.0.1", "[::1]", "localhost"):
            found = await probed(f"http://{host}:{port}/")
            assert found == ProbeResult(ready=False, reason=reasons.REFUSED)


async def test_a_name_that_does_not_resolve_is_a_value(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name without an address is a reason."""

    def unknown(*_: object, **__: object) -> list[Any]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    found = await probed("http://gateway.invalid:15021/")
    assert found == ProbeResult(ready=False, reason=reasons.NAME_UNRESOLVED)


async def test_a_place_without_a_route_is_a_value(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that the kernel will not even try, or gives up, is a reason."""
    for error in (OSError(101, "Network is unreachable"), TimeoutError(110, "timed out")):

        async def fail(*_: object, error: OSError = error, **__: object) -> Any:
            raise error

        monkeypatch.setattr(asyncio.get_running_loop(), "create_connection", fail)
        found = await probed("http://localhost:15021/")
        assert found == ProbeResult(ready=False, reason=reasons.UNREACHABLE)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_a_lack_of_descriptors_is_not_the_gateways_fault(
    monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    """While this process may open no socket, an attempt waits for one instead of blaming."""
    loop = asyncio.get_running_loop()
    connect = loop.create_connection
    errors = [OSError(errno.EMFILE, "Too many open files"), OSError(errno.ENFILE, "in system")]

    async def sometimes(*args: Any, **kwargs: Any) -> Any:
        if errors:
            raise errors.pop()
        return await connect(*args, **kwargs)

    async with target(answers(200)) as gateway:
        monkeypatch.setattr(loop, "create_connection", sometimes)
        assert (await probed(f"http://{host}:{gateway.port}/")).ready
    assert errors == []


def finds(*addresses: str) -> Callable[..., list[Any]]:
    """Resolve every name to these addresses."""

    def look_up(_host: str, port: int, **_: object) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (one, port)) for one in addresses]

    return look_up


@pytest.mark.parametrize("first_hangs", [True, False])
async def test_a_name_has_more_than_one_address(
    monkeypatch: pytest.MonkeyPatch, first_hangs: bool
) -> None:
    """Where the first address refuses, or stays silent for a while, the next one is tried."""
    loop = asyncio.get_running_loop()
    connect = loop.create_connection

    async def connects(factory: Any, host: str, *args: Any, **kwargs: Any) -> Any:
        if first_hangs and host == "127.0.0.2":
            await asyncio.Event().wait()
        return await connect(factory, host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", finds("127.0.0.2", "127.0.0.1"))
    monkeypatch.setattr(probe, "NEXT_ADDRESS", 0.01)
    async with target(answers(200)) as gateway:
        monkeypatch.setattr(loop, "create_connection", connects)
        async with asyncio.timeout(LONG):
            assert (await probed(f"http://gateway.test:{gateway.port}/")).ready


async def test_the_first_address_that_answers_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A probe goes where the name says, and nowhere else on this machine."""
    monkeypatch.setattr(socket, "getaddrinfo", finds("127.0.0.2", "127.0.0.1"))
    monkeypatch.setattr(probe, "NEXT_ADDRESS", LONG)
    async with target(answers(200), host="127.0.0.2") as gateway:
        assert (await probed(f"http://gateway.test:{gateway.port}/")).ready
        assert (await probed(f"http://127.0.0.2:{gateway.port}/")).ready


async def test_a_slow_loopback_address_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A gateway on 127.0.0.1 that accepts late is not given up for one on ::1."""
    loop = asyncio.get_running_loop()
    connect = loop.create_connection

    async def late(*args: Any, **kwargs: Any) -> Any:
        for _ in range(100):
            await asyncio.sleep(0)
        return await connect(*args, **kwargs)

    monkeypatch.setattr(probe, "NEXT_ADDRESS", 0)
    async with target(answers(200)) as gateway:
        monkeypatch.setattr(loop, "create_connection", late)
        assert (await probed(f"http://localhost:{gateway.port}/")).ready


async def test_a_plain_target_beside_one_with_tls_stays_plain() -> None:
    """Whom the process trusts is nothing to a target that is asked without TLS."""
    async with target(answers(200)) as gateway:
        aim = target_of(f"http://127.0.0.1:{gateway.port}/")
        context = ssl.create_default_context()
        found = await HttpProbe(aim, success_codes=CODES, headers={}, tls=context)()
    assert found.ready


async def test_headers_may_be_long() -> None:
    """What proxies add to an answer is no reason to be unwell, up to a bound."""
    async with target(answers(200, b"x: %s\r\n" % (b"a" * 50_000))) as gateway:
        assert (await probed(f"http://127.0.0.1:{gateway.port}/")).ready


async def test_what_is_no_name_has_no_address() -> None:
    """A label that is too long for DNS is a name that does not resolve, and no bug."""
    aim = replace(target_of("http://localhost/"), host="a" * 64)
    found = await HttpProbe(aim, success_codes=CODES, headers={}, tls=None)()
    assert found == ProbeResult(ready=False, reason=reasons.NAME_UNRESOLVED)


def test_an_exception_of_our_own_making_is_not_hidden() -> None:
    """A request that cannot be sent is a bug, and not the gateway's fault."""
    aim = target_of("http://127.0.0.1:1/")
    with pytest.raises(h11.LocalProtocolError):
        HttpProbe(aim, success_codes=CODES, headers={"a": "\x00"}, tls=None)


async def test_a_body_that_streams_for_ever_is_not_read() -> None:
    """Trap 14: the status line and the headers are the answer."""
    behaviour = repeats(b"x" * 1000, first=b"HTTP/1.1 200 OK\r\n\r\n")
    async with target(behaviour) as gateway, asyncio.timeout(LONG):
        found = await probed(f"http://127.0.0.1:{gateway.port}/")
    assert found == ProbeResult(ready=True, reason="gateway answered 200")


async def test_each_attempt_has_a_connection_of_its_own() -> None:
    """Trap 13: nothing is kept alive, so a listener that closed is seen at once."""
    closed = asyncio.Event()

    async def keeps_alive(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
        assert await reader.read() == b""
        closed.set()

    async with target(keeps_alive) as gateway:
        probe = probe_of(gateway)
        async with asyncio.timeout(LONG):
            for _ in range(3):
                closed.clear()
                assert (await probe()).ready
                await closed.wait()
    assert len(gateway.requests) == 3
    assert all(b"Connection: close" in request for request in gateway.requests)


async def test_a_cancelled_attempt_leaves_no_connection() -> None:
    """An attempt that runs out of time hangs up on a gateway that still has the request."""
    asked, hung_up = asyncio.Event(), asyncio.Event()

    async def waits(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.set()
        await is_silent(reader, writer)
        hung_up.set()

    async with target(waits) as gateway, asyncio.timeout(LONG):
        attempt = asyncio.create_task(probe_of(gateway)())
        await asked.wait()
        attempt.cancel()
        await hung_up.wait()
        assert attempt.cancelled()


async def test_cancelling_an_attempt_at_any_await_leaves_nothing() -> None:
    """Wherever an attempt is cancelled, its connection is closed and no task is left."""

    async def answers_and_waits(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
        assert await reader.read() == b""

    async with target(answers_and_waits) as gateway, asyncio.timeout(3 * LONG):
        probe = probe_of(gateway)
        before = asyncio.all_tasks()
        for turns in itertools.count():
            attempt = asyncio.create_task(probe())
            for _ in range(turns):
                await asyncio.sleep(0)
            attempt.cancel()
            await asyncio.wait((attempt,))
            assert attempt.cancelled() or attempt.result().ready
            while asyncio.all_tasks() != before:  # noqa: ASYNC110 - the peer's end on their own
                await asyncio.sleep(0)
            if not attempt.cancelled():
                break
        assert turns > 5, "there are more awaits than that"


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy", "ALL_PROXY"])
async def test_proxy_variables_are_ignored(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    """Trap 11: the loopback probe is not sent through a proxy."""
    monkeypatch.delenv("NO_PROXY", raising=False)
    async with target(answers(502)) as proxy, target(answers(200)) as gateway:
        monkeypatch.setenv(variable, f"http://127.0.0.1:{proxy.port}")
        assert (await probed(f"http://127.0.0.1:{gateway.port}/")).ready
    assert proxy.requests == []


def nowhere(*_: object, **__: object) -> list[Any]:
    raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
@pytest.mark.parametrize("hosts_know_it", [True, False])
async def test_localhost_is_either_loopback_address(
    monkeypatch: pytest.MonkeyPatch,
    host: str,
    hosts_know_it: bool,
) -> None:
    """`localhost` reaches a listener on either address alone, whatever the resolver knows."""
    async with target(answers(200), host=host) as gateway:
        if not hosts_know_it:
            monkeypatch.setattr(socket, "getaddrinfo", nowhere)
        found = await probed(f"http://localhost:{gateway.port}/")
        assert f"Host: localhost:{gateway.port}".encode() in gateway.requests[0]
    assert found == ProbeResult(ready=True, reason="gateway answered 200")


async def test_what_is_sent() -> None:
    """A GET for the whole target, by a named client, with nothing that asks for more."""
    async with target(answers(200)) as gateway:
        lines = await request_to(gateway)
    assert lines == [
        "GET /healthz/ready?full=1 HTTP/1.1",
        f"Host: 127.0.0.1:{gateway.port}",
        f"User-Agent: ghealth/{__version__}",
        "Accept: */*",
        "Connection: close",
    ]


async def test_headers_of_the_operators_come_in_place_of_ours() -> None:
    """PROBE_HEADERS are sent, and one that ghealth sends too replaces it."""
    async with target(answers(200)) as gateway:
        lines = await request_to(gateway, headers={"host": "ready.example", "X-Key": "k"})
    assert "X-Key: k" in lines
    assert [line for line in lines if line.lower().startswith("host")] == ["host: ready.example"]


async def test_user_info_becomes_basic_authentication() -> None:
    """A user and password in the URL are sent as a header, and not in the request line."""
    async with target(answers(200)) as gateway:
        await probed(f"http://me:p%40ss@127.0.0.1:{gateway.port}/x#part")
    expected = base64.b64encode(b"me:p@ss").decode()
    assert f"Authorization: Basic {expected}".encode() in gateway.requests[0]
    assert gateway.requests[0].startswith(b"GET /x HTTP/1.1\r\n")


@contextlib.contextmanager
def trusting(authority: trustme.CA, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> Any:
    bundle = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(bundle))
    with monkeypatch.context() as patched:
        patched.setenv("SSL_CERT_FILE", str(bundle))
        yield


def certificate_of(authority: trustme.CA, name: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(context)
    return context


async def test_https_verifies_against_the_systems_store(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    """A certificate of an authority in SSL_CERT_FILE verifies, by the name in the URL."""
    authority = trustme.CA()
    tls = certificate_of(authority, "localhost")
    with trusting(authority, monkeypatch, tmp_path):
        async with target(answers(200), tls=tls) as gateway:
            assert (await probed(f"https://localhost:{gateway.port}/")).ready
            found = await probed(f"https://127.0.0.1:{gateway.port}/")
    assert found == ProbeResult(ready=False, reason=reasons.CERTIFICATE)


async def test_a_certificate_that_does_not_verify_is_a_value() -> None:
    """A stranger's certificate is a reason."""
    async with target(answers(200), tls=certificate_of(trustme.CA(), "localhost")) as gateway:
        found = await probed(f"https://localhost:{gateway.port}/")
    assert found == ProbeResult(ready=False, reason=reasons.CERTIFICATE)


async def test_a_peer_without_tls_is_a_value() -> None:
    """An https probe of a plaintext port is a reason."""
    async with target(says(b"HTTP/1.1 400 Bad\r\n\r\n"), reads=False) as gateway:
        found = await probed(f"https://127.0.0.1:{gateway.port}/")
    assert found == ProbeResult(ready=False, reason=reasons.TLS)


def test_plain_http_reads_no_certificates(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trap 12: the store of certificates is read only where a target wants TLS."""

    def read(*_: object, **__: object) -> Any:
        raise AssertionError("the store was read")

    monkeypatch.setattr(ssl, "create_default_context", read)
    plain, secure = target_of("http://localhost/"), target_of("https://localhost/")
    assert trust([plain]) is None
    with pytest.raises(AssertionError, match="the store was read"):
        trust([plain, secure])

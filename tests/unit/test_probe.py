import asyncio
import base64
import contextlib
import errno
import gc
import itertools
import logging
import socket
import ssl
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpcore
import httpx
import pytest
import trustme

from ghealth import __version__, probe
from ghealth.health import Reason, ReasonKind
from ghealth.matcher import HTTP_CODES, Matcher
from ghealth.probe import AllOf, HttpProbe, Probe, ProbeResult, WithTimeout
from ghealth.server.tls import trust_store
from tests.support.fakes import READY, SICK, FakeProbe, answered
from tests.support.peers import (
    Behaviour,
    Target,
    answers,
    hung_up,
    is_silent,
    nobody,
    repeats,
    resets,
    says,
    target,
)
from tests.support.stopwatch import Stopwatch
from tests.support.virtual import in_virtual_time

figures = logging.getLogger(__name__)
"""Shown by `pytest --log-cli-level=info`."""

SHORT, LONG = 0.3, 20.0
"""Seconds for who never comes to an end, and for who does."""

CODES = Matcher.parse("200-299", HTTP_CODES)


async def probed(
    url: str, codes: Matcher = CODES, headers: dict[str, str] | None = None
) -> ProbeResult:
    """Probe once; a probe that does not come to an end fails the test."""
    trust = trust_store() if url.startswith("https") else None
    once = HttpProbe(httpx.URL(url), success_codes=codes, headers=headers or {}, trust=trust)
    async with asyncio.timeout(LONG):
        return await once()


def probe_of(gateway: Target) -> HttpProbe:
    """Make a probe of a target."""
    url = httpx.URL(f"http://127.0.0.1:{gateway.port}/")
    return HttpProbe(url, success_codes=CODES, headers={})


def not_ready(kind: ReasonKind) -> ProbeResult:
    """Make the result of a probe without a response."""
    return ProbeResult(ready=False, reason=Reason(kind))


async def request_to(behaving: Target, **options: Any) -> list[str]:
    """Return the lines of the request that one probe sends."""
    await probed(f"http://127.0.0.1:{behaving.port}/healthz/ready?full=1", **options)
    return behaving.requests[-1].decode().strip().split("\r\n")


@pytest.mark.parametrize(
    ("code", "ready"), [(200, True), (204, True), (299, True), (301, False), (404, False)]
)
async def test_the_status_code_decides(code: int, ready: bool) -> None:
    """A success code is ready, any other is not, and a redirect is not followed."""
    async with target(answers(code, b"location: /elsewhere\r\n")) as gateway:
        found = await probed(f"http://127.0.0.1:{gateway.port}/")
    assert found == ProbeResult(ready, answered(code))
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
        *((behaviour, LONG, Reason(ReasonKind.CLOSED)) for behaviour in CLOSED_EARLY),
        *((behaviour, LONG, Reason(ReasonKind.NOT_HTTP)) for behaviour in NOT_HTTP),
        *((behaviour, SHORT, Reason(ReasonKind.TIMED_OUT, "0.3 s")) for behaviour in ENDLESS),
        (resets, LONG, Reason(ReasonKind.RESET)),
    ],
)
async def test_every_misbehaviour_is_a_value_in_time(
    behaviour: Behaviour, seconds: float, reason: Reason
) -> None:
    """However a target misbehaves, the result is not ready with a fixed reason, in time."""
    async with target(behaviour) as gateway, asyncio.timeout(LONG):
        taking = Stopwatch()
        result = await WithTimeout(probe_of(gateway), seconds)()
        figures.info("%s in %.3f s", result.reason, taking.on_the_wall)
        assert taking.seconds < SHORT + 0.2
    assert result == ProbeResult(ready=False, reason=reason)


async def test_a_refused_connection_is_a_value() -> None:
    """A port without a listener has a reason."""
    with nobody() as port:
        for host in ("127.0.0.1", "[::1]", "localhost"):
            found = await probed(f"http://{host}:{port}/")
            assert found == not_ready(ReasonKind.REFUSED)


async def test_a_name_that_does_not_resolve_is_a_value(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name without an address is a reason."""

    def unknown(*_: object, **__: object) -> list[Any]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    found = await probed("http://gateway.invalid:15021/")
    assert found == not_ready(ReasonKind.NAME_UNRESOLVED)


async def test_a_place_without_a_route_is_a_value(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that the kernel will not even try, or gives up, is a reason."""
    for error in (OSError(101, "Network is unreachable"), TimeoutError(110, "timed out")):

        async def fail(*_: object, error: OSError = error, **__: object) -> Any:
            raise error

        monkeypatch.setattr(asyncio.get_running_loop(), "create_connection", fail)
        found = await probed("http://localhost:15021/")
        assert found == not_ready(ReasonKind.UNREACHABLE)


def fail_first(monkeypatch: pytest.MonkeyPatch, errors: list[OSError]) -> None:
    """Let the next connections fail with these errors, the last one first."""
    loop = asyncio.get_running_loop()
    connect = loop.create_connection

    async def sometimes(*args: Any, **kwargs: Any) -> Any:
        if errors:
            raise errors.pop()
        return await connect(*args, **kwargs)

    monkeypatch.setattr(loop, "create_connection", sometimes)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_a_lack_of_descriptors_is_not_the_gateways_fault(
    monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    """While this process may open no socket, a probe waits for one instead of blaming."""
    errors = [OSError(errno.EMFILE, "Too many open files"), OSError(errno.ENFILE, "in system")]
    async with target(answers(200)) as gateway:
        fail_first(monkeypatch, errors)
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
    monkeypatch.setattr(probe, "CONNECTION_ATTEMPT_DELAY", 0.01)
    async with target(answers(200)) as gateway:
        monkeypatch.setattr(loop, "create_connection", connects)
        async with asyncio.timeout(LONG):
            assert (await probed(f"http://gateway.test:{gateway.port}/")).ready


async def test_the_first_address_that_answers_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A probe connects to the address of the name, and to no other on this machine."""
    monkeypatch.setattr(socket, "getaddrinfo", finds("127.0.0.2", "127.0.0.1"))
    monkeypatch.setattr(probe, "CONNECTION_ATTEMPT_DELAY", LONG)
    async with target(answers(200), host="127.0.0.2") as gateway:
        assert (await probed(f"http://gateway.test:{gateway.port}/")).ready
        assert (await probed(f"http://127.0.0.2:{gateway.port}/")).ready


async def test_a_slow_loopback_address_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A gateway on 127.0.0.1 that accepts late is not given up because ::1 refuses."""
    loop = asyncio.get_running_loop()
    connect = loop.create_connection
    refused = asyncio.Event()

    async def late(factory: Any, host: str, *args: Any, **kwargs: Any) -> Any:
        if host == "127.0.0.1":
            await refused.wait()
        try:
            return await connect(factory, host, *args, **kwargs)
        finally:
            refused.set()

    monkeypatch.setattr(probe, "CONNECTION_ATTEMPT_DELAY", 0)
    async with target(answers(200)) as gateway:
        monkeypatch.setattr(loop, "create_connection", late)
        assert (await probed(f"http://localhost:{gateway.port}/")).ready


async def test_a_plain_target_beside_one_with_tls_stays_plain() -> None:
    """The trusted certificates do not matter to a target without TLS."""
    async with target(answers(200)) as gateway:
        url = httpx.URL(f"http://127.0.0.1:{gateway.port}/")
        found = await HttpProbe(url, success_codes=CODES, headers={}, trust=trust_store())()
    assert found.ready


async def test_headers_may_be_long() -> None:
    """Headers that proxies add do not fail a probe, up to a limit."""
    async with target(answers(200, b"x: %s\r\n" % (b"a" * 50_000))) as gateway:
        assert (await probed(f"http://127.0.0.1:{gateway.port}/")).ready


async def test_what_is_no_name_has_no_address() -> None:
    """A label that is too long for DNS is a name that does not resolve, and no bug."""
    found = await probed(f"http://{'a' * 64}/")
    assert found == not_ready(ReasonKind.NAME_UNRESOLVED)


@pytest.mark.parametrize(
    ("headers", "mistake"),
    [
        ({"a": "\x00"}, "Illegal header value"),
        ({"Content-Length": "1, 2"}, "conflicting Content-Length headers"),
    ],
)
def test_what_is_no_request_is_refused_at_once(headers: dict[str, str], mistake: str) -> None:
    """What the HTTP library would not send is refused with its reason when the probe is made."""
    with pytest.raises(ValueError, match=mistake):
        HttpProbe(httpx.URL("http://127.0.0.1:1/"), success_codes=CODES, headers=headers)


async def test_a_body_that_streams_for_ever_is_not_read() -> None:
    """Trap 14: the status line and the headers are the answer."""
    behaviour = repeats(b"x" * 1000, first=b"HTTP/1.1 200 OK\r\n\r\n")
    async with target(behaviour) as gateway, asyncio.timeout(LONG):
        found = await probed(f"http://127.0.0.1:{gateway.port}/")
    assert found == READY


async def test_each_attempt_has_a_connection_of_its_own() -> None:
    """Trap 13: nothing is kept alive, so a listener that closed is seen at once."""
    closed = asyncio.Event()

    async def keeps_alive(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
        await hung_up(reader)
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
    """A probe that runs out of time hangs up on a gateway that still has the request."""
    asked, closed = asyncio.Event(), asyncio.Event()

    async def waits(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.set()
        await is_silent(reader, writer)
        closed.set()

    async with target(waits) as gateway, asyncio.timeout(LONG):
        attempt = asyncio.create_task(probe_of(gateway)())
        await asked.wait()
        attempt.cancel()
        await closed.wait()
        assert attempt.cancelled()


async def test_cancelling_an_attempt_at_any_await_leaves_nothing() -> None:
    """Wherever a probe is cancelled, its connection is closed and no task is left."""

    async def answers_and_waits(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
        await hung_up(reader)

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
        assert await probed(f"http://localhost:{gateway.port}/") == READY
        assert f"Host: localhost:{gateway.port}".encode() in gateway.requests[0]


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
    assert found == not_ready(ReasonKind.CERTIFICATE)


async def test_a_certificate_that_does_not_verify_is_a_value() -> None:
    """A certificate of an unknown authority has a reason."""
    async with target(answers(200), tls=certificate_of(trustme.CA(), "localhost")) as gateway:
        found = await probed(f"https://localhost:{gateway.port}/")
    assert found == not_ready(ReasonKind.CERTIFICATE)


async def test_a_peer_without_tls_is_a_value() -> None:
    """An https probe of a plaintext port is a reason."""
    async with target(says(b"HTTP/1.1 400 Bad\r\n\r\n"), reads=False) as gateway:
        found = await probed(f"https://127.0.0.1:{gateway.port}/")
    assert found == not_ready(ReasonKind.TLS)


async def test_only_the_certificates_that_a_probe_was_made_with_are_trusted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    """The environment adds none while probing, and a probe that was made without has none."""
    known, other = trustme.CA(), trustme.CA()
    trust = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    known.configure_trust(trust)
    with trusting(other, monkeypatch, tmp_path):
        async with (
            target(answers(200), tls=certificate_of(known, "localhost")) as of_known,
            target(answers(200), tls=certificate_of(other, "localhost")) as of_other,
        ):
            results = [
                await HttpProbe(
                    httpx.URL(f"https://localhost:{gateway.port}/"),
                    success_codes=CODES,
                    headers={},
                    trust=trusted,
                )()
                for gateway, trusted in ((of_known, trust), (of_other, trust), (of_other, None))
            ]
    assert results == [READY, *[not_ready(ReasonKind.CERTIFICATE)] * 2]


async def test_all_probes_share_one_trust_store(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trap 10: neither making nor sending a probe reads certificates: only `trust_store` does."""

    def read(*_: object, **__: object) -> Any:
        raise AssertionError("the store was read")

    monkeypatch.setattr(ssl, "create_default_context", read)
    with nobody() as port:
        for scheme in ("http", "https"):
            url = httpx.URL(f"{scheme}://localhost:{port}/")
            found = await HttpProbe(url, success_codes=CODES, headers={})()
            assert found == not_ready(ReasonKind.REFUSED)
    with pytest.raises(AssertionError, match="the store was read"):
        trust_store()


async def answers_and_resets(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n")
    await resets(_, writer)


async def test_a_response_head_counts_whatever_becomes_of_its_connection() -> None:
    """A target that resets the connection right after its response headers is judged by them."""
    async with target(answers_and_resets) as gateway:
        for _ in range(50):
            assert await probed(f"http://127.0.0.1:{gateway.port}/") == READY


async def test_a_switch_of_protocols_ends_a_probe() -> None:
    """Trap 10: a 101 to a request with `Upgrade` is a status code, and not a loop without end."""
    url = "http://127.0.0.1:{}/"
    switching = says(b"HTTP/1.1 101 Switching\r\nupgrade: h2c\r\nconnection: upgrade\r\n\r\n")
    async with target(switching) as gateway, asyncio.timeout(LONG):
        found = await probed(
            url.format(gateway.port), headers={"Upgrade": "h2c", "Connection": "upgrade"}
        )
    assert found == ProbeResult(ready=False, reason=answered(101))


async def test_a_flood_of_1xx_responses_is_bounded_and_yields() -> None:
    """What a target sends before its response is bounded, and parsed in small parts."""
    turns = 0

    async def count_turns() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    flood = says(b"HTTP/1.1 100 C\r\n\r\n" * 100_000)
    async with target(flood) as gateway, asyncio.timeout(LONG):
        counting = asyncio.create_task(count_turns())
        found = await probed(f"http://127.0.0.1:{gateway.port}/")
        counting.cancel()
    assert found == not_ready(ReasonKind.NOT_HTTP)
    assert turns >= probe.MAX_RESPONSE_HEAD / probe.READ_SIZE


@pytest.mark.parametrize(("spare", "ready"), [(0, True), (-1, False)])
async def test_a_response_head_may_be_as_long_as_the_limit(
    monkeypatch: pytest.MonkeyPatch, spare: int, ready: bool
) -> None:
    """A head of MAX_RESPONSE_HEAD bytes is read, and not one byte more."""
    head = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"
    monkeypatch.setattr(probe, "MAX_RESPONSE_HEAD", len(head) + spare)
    monkeypatch.setattr(probe, "READ_SIZE", 1)
    async with target(says(head)) as gateway:
        found = await probed(f"http://127.0.0.1:{gateway.port}/")
    assert found == (READY if ready else not_ready(ReasonKind.NOT_HTTP))


async def test_dead_addresses_do_not_hide_a_live_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Six addresses that do not answer cost six delays, not six timeouts (RFC 8305)."""
    loop = asyncio.get_running_loop()
    connect = loop.create_connection
    tried = []

    async def connects(factory: Any, host: str, *args: Any, **kwargs: Any) -> Any:
        tried.append(host)
        if host != "127.0.0.1":
            await asyncio.Event().wait()
        return await connect(factory, host, *args, **kwargs)

    dead = [f"127.0.0.{number}" for number in range(2, 8)]
    monkeypatch.setattr(socket, "getaddrinfo", finds(*dead, "127.0.0.1"))
    monkeypatch.setattr(probe, "CONNECTION_ATTEMPT_DELAY", 0.01)
    async with target(answers(200)) as gateway, asyncio.timeout(LONG):
        monkeypatch.setattr(loop, "create_connection", connects)
        before = asyncio.all_tasks()
        assert (await probed(f"http://gateway.test:{gateway.port}/")).ready
        while not asyncio.all_tasks() <= before:  # noqa: ASYNC110 - the end of the other attempts
            await asyncio.sleep(0)
    assert tried == [*dead, "127.0.0.1"]


async def test_a_connection_that_comes_too_late_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two addresses that accept, one is used, and the other connection does not stay open."""
    both = asyncio.Barrier(2)
    loop = asyncio.get_running_loop()
    connect = loop.create_connection

    async def connects(*args: Any, **kwargs: Any) -> Any:
        made = await connect(*args, **kwargs)
        await both.wait()
        return made

    monkeypatch.setattr(probe, "CONNECTION_ATTEMPT_DELAY", 0.01)
    async with target(answers(200), host="0.0.0.0") as gateway, asyncio.timeout(LONG):
        monkeypatch.setattr(socket, "getaddrinfo", finds("127.0.0.1", "127.0.0.2"))
        monkeypatch.setattr(loop, "create_connection", connects)
        assert (await probed(f"http://gateway.test:{gateway.port}/")).ready
        await asyncio.gather(*gateway.talks, return_exceptions=True)


async def test_a_look_up_that_hangs_is_shared_by_the_probes_of_a_target(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A name server that does not answer holds one thread, however many probes are cancelled."""
    answer, calls = threading.Event(), []

    def look_up(host: str, port: int, **options: Any) -> list[Any]:
        if options.get("flags", 0) & socket.AI_NUMERICHOST:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        calls.append(host)
        answer.wait(LONG)
        return finds("127.0.0.1")(host, port)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    async with target(answers(200)) as gateway:
        url = httpx.URL(f"http://gateway.test:{gateway.port}/")
        named = HttpProbe(url, success_codes=CODES, headers={})
        for _ in range(10):
            assert not (await WithTimeout(named, 0.01)()).ready
        answer.set()
        assert (await named()).ready
    assert calls == ["gateway.test"]


@pytest.mark.parametrize("error", [errno.EADDRNOTAVAIL, errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM])
async def test_what_this_machine_lacks_is_not_the_targets_fault(
    monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    """Without a free port, a thread or a buffer here, a probe tries again."""
    errors = [OSError(error, "none left")]
    async with target(answers(200)) as gateway:
        fail_first(monkeypatch, errors)
        assert (await probed(f"http://127.0.0.1:{gateway.port}/")).ready
    assert errors == []


@in_virtual_time
async def test_attempts_without_a_descriptor_are_a_moment_apart() -> None:
    """A probe that waits for a descriptor does not use the processor while it waits."""
    loop = asyncio.get_running_loop()
    errors = [*[OSError(errno.EMFILE, "Too many open files")] * 4, ConnectionRefusedError()]

    async def fails(*_: object, **__: object) -> Any:
        raise errors.pop(0)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(loop, "create_connection", fails)
        assert await probed("http://127.0.0.1:1/") == not_ready(ReasonKind.REFUSED)
    assert loop.time() == pytest.approx(4 * 0.05)


@in_virtual_time
async def test_addresses_are_tried_a_quarter_of_a_second_apart() -> None:
    """That is the delay that RFC 8305 recommends."""
    loop = asyncio.get_running_loop()
    tried = []

    async def hangs(_factory: Any, host: str, *_: object, **__: object) -> Any:
        tried.append((host, loop.time()))
        await asyncio.Event().wait()

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(socket, "getaddrinfo", finds("10.0.0.1", "10.0.0.2", "10.0.0.3"))
        patched.setattr(loop, "create_connection", hangs)
        named = HttpProbe(httpx.URL("http://gateway.test/"), success_codes=CODES, headers={})
        assert not (await WithTimeout(named, 1, clock=loop.time)()).ready
    assert [host for host, _ in tried] == ["10.0.0.1", "10.0.0.2", "10.0.0.3"]
    assert [when for _, when in tried] == pytest.approx([0, 0.25, 0.5], abs=0.001)


async def test_a_network_that_fails_after_the_connect_is_a_value(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """If the way to the target is lost before its response, it is unreachable, and not closed."""

    class Lost(httpcore.AsyncMockStream):
        async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
            del max_bytes, timeout
            failure = httpcore.ReadError()
            failure.__context__ = OSError(errno.EHOSTUNREACH, "No route to host")
            raise failure

    async def connect(*_: object, **__: object) -> Any:
        return Lost([])

    monkeypatch.setattr(httpcore.AnyIOBackend, "connect_tcp", connect)
    assert await probed("http://127.0.0.1:1/") == not_ready(ReasonKind.UNREACHABLE)


async def test_a_tls_peer_that_hangs_up_is_a_value() -> None:
    """An end of the connection in the middle of a TLS handshake has a reason."""
    async with target(says(b""), reads=False) as gateway:
        found = await probed(f"https://127.0.0.1:{gateway.port}/")
    assert found == not_ready(ReasonKind.TLS)


TCP_TABLE = Path("/proc/net/tcp")


async def test_a_cause_in_a_group_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trap 10: anyio raises the failures of several addresses as a group."""

    async def fail(*_: object, **__: object) -> Any:
        errors = [OSError(113, "No route to host"), ConnectionRefusedError()]
        all_failed = OSError("All connection attempts failed")
        all_failed.__cause__ = ExceptionGroup("two", errors)
        failure = httpcore.ConnectError()
        failure.__context__ = all_failed  # as after httpcore's `raise … from None`
        raise failure

    monkeypatch.setattr(httpcore.AnyIOBackend, "connect_tcp", fail)
    assert await probed("http://127.0.0.1:1/") == not_ready(ReasonKind.REFUSED)


async def test_a_look_up_that_is_cancelled_is_no_bug(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The end of the event loop cancels look-ups; nothing is logged."""

    async def hangs(*_: object, **__: object) -> Any:
        await asyncio.Event().wait()

    monkeypatch.setattr(probe, "look_up", hangs)
    before = asyncio.all_tasks()
    await WithTimeout(
        HttpProbe(httpx.URL("http://gateway.test/"), success_codes=CODES, headers={}), 0.01
    )()
    (looking_up,) = asyncio.all_tasks() - before
    looking_up.cancel()
    await asyncio.wait((looking_up,))
    assert caplog.records == []


async def test_a_look_up_that_fails_after_its_probe_is_no_bug(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is logged when a look-up fails that no probe waits for any more."""
    answer = asyncio.Event()

    async def fails_late(*_: object, **__: object) -> Any:
        await answer.wait()
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(probe, "look_up", fails_late)
    before = asyncio.all_tasks()
    await WithTimeout(
        HttpProbe(httpx.URL("http://gateway.test/"), success_codes=CODES, headers={}), 0.01
    )()
    looking_up = asyncio.all_tasks() - before
    answer.set()
    await asyncio.wait(looking_up)
    looking_up.clear()
    gc.collect()
    assert caplog.records == []


async def test_probes_leave_no_port_in_time_wait() -> None:
    """A target that waits for ghealth to close first costs no port after the probe."""

    async def waits(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
        await hung_up(reader)

    async with target(waits) as gateway:
        for _ in range(5):
            assert (await probed(f"http://127.0.0.1:{gateway.port}/")).ready
    sockets = await asyncio.to_thread(TCP_TABLE.read_text)
    time_wait = f":{gateway.port:04X} 06 "
    assert [line for line in sockets.splitlines() if time_wait in line] == []


async def test_cancelling_a_tls_probe_at_any_await_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    """Wherever a probe over TLS is cancelled, its connection is closed."""
    authority = trustme.CA()
    with trusting(authority, monkeypatch, tmp_path):
        tls = certificate_of(authority, "localhost")
        async with target(answers(200), tls=tls) as gateway, asyncio.timeout(3 * LONG):
            url = httpx.URL(f"https://localhost:{gateway.port}/")
            secure = HttpProbe(url, success_codes=CODES, headers={}, trust=trust_store())
            for turns in itertools.count():
                attempt = asyncio.create_task(secure())
                for _ in range(turns):
                    await asyncio.sleep(0)
                attempt.cancel()
                await asyncio.wait((attempt,))
                if not attempt.cancelled():
                    break
    assert turns > 5, "there are more awaits than that"


@pytest.mark.parametrize(
    ("results", "expected"),
    [
        ((READY, READY, READY), READY),
        ((READY, SICK, READY), "probe 2 of 3: gateway answered 503"),
        ((SICK, READY, SICK), "probe 1 of 3: gateway answered 503"),
    ],
)
async def test_several_probes_are_ready_if_all_are(results: Any, expected: Any) -> None:
    """The reason names the first probe in the list's order that is not ready."""
    found = await AllOf([FakeProbe(result) for result in results])()
    if expected is READY:
        assert found == READY
    else:
        assert (found.ready, str(found.reason)) == (False, expected)


async def test_if_several_probes_are_ready_the_last_one_is_the_result() -> None:
    """The result is that of the last probe in the list's order."""
    results = [ProbeResult(ready=True, reason=answered(code)) for code in (200, 201, 202)]
    assert await AllOf([FakeProbe(result) for result in results])() == results[-1]


@pytest.mark.parametrize(("seconds", "ready"), [(3.0, True), (3.001, False)])
async def test_a_result_at_the_time_limit_counts(seconds: float, ready: bool) -> None:
    """A probe that took exactly its time limit is not late, and one that took longer is."""
    clock = iter((0.0, seconds))
    found = await WithTimeout(FakeProbe(), 3, clock=lambda: next(clock))()
    assert found.ready is ready


@in_virtual_time
async def test_several_probes_share_one_timeout() -> None:
    """Probes run side by side; one that hangs is named, and costs the timeout once."""
    hanging, slow = FakeProbe(), FakeProbe()
    hanging.gate.clear()
    slow.gate.clear()
    loop = asyncio.get_running_loop()
    probes: list[Probe] = [
        WithTimeout(one, 3, clock=loop.time) for one in (FakeProbe(), hanging, slow)
    ]
    found = await AllOf(probes)()
    assert loop.time() == pytest.approx(3)
    assert str(found.reason) == "probe 2 of 3: no answer within 3 s"


@in_virtual_time
async def test_a_cancelled_group_of_probes_leaves_nothing() -> None:
    """Cancelling several probes cancels each of them."""
    hanging = FakeProbe()
    hanging.gate.clear()
    before = asyncio.all_tasks()
    probing = asyncio.create_task(AllOf([FakeProbe(), hanging])())
    await asyncio.sleep(1)
    probing.cancel()
    await asyncio.wait((probing,))
    assert hanging.under_way == 0
    assert asyncio.all_tasks() == before


def test_a_reason_of_ones_own() -> None:
    """A probe outside the package gives its reason as a text."""
    found = ProbeResult.because("queue is full", ready=False)
    assert (found.ready, str(found.reason)) == (False, "queue is full")

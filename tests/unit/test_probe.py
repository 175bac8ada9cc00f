import asyncio
import base64
import datetime as dt
import errno
import itertools
import logging
import os
import socket
import ssl
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import trustme

from ghealth import __version__, probe
from ghealth.health import Reason, ReasonKind
from ghealth.matcher import HTTP_CODES, Matcher
from ghealth.probe import AllOf, HttpProbe, Probe, ProbeResult, WithTimeout
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
"""Seconds for a target that never answers, and for one that does."""

CODES = Matcher.parse("200-299", HTTP_CODES)
AUTHORITY = trustme.CA()
TCP_TABLE = Path("/proc/net/tcp")


def trust(authority: trustme.CA = AUTHORITY) -> ssl.SSLContext:
    """Make a client's context that trusts one authority."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.configure_trust(context)
    return context


def probe_of(url: str, **options: Any) -> HttpProbe:
    """Make a probe of a URL."""
    made: dict[str, Any] = {"success_codes": CODES, "headers": {}} | options
    return HttpProbe(httpx.URL(url), **made)


async def probed(url: str, **options: Any) -> ProbeResult:
    """Probe once; a probe that does not end fails the test."""
    options |= {"trust": trust()} if url.startswith("https") and "trust" not in options else {}
    async with asyncio.timeout(LONG):
        return await probe_of(url, **options)()


def not_ready(kind: ReasonKind) -> ProbeResult:
    """Make the result of a probe without a response."""
    return ProbeResult(ready=False, reason=Reason(kind))


def resolves(*addresses: str) -> Callable[..., list[Any]]:
    """Make a look-up that finds these addresses for every name, and fails without any."""

    def look_up(*_: object, flags: int = 0, **__: object) -> list[Any]:
        if flags & socket.AI_NUMERICHOST or not addresses:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (one, 0)) for one in addresses]

    return look_up


Connect = Callable[[str], Any]


def connects(patched: pytest.MonkeyPatch, before: Connect) -> None:
    """Call something with the address before each connection of the event loop."""
    loop = asyncio.get_running_loop()
    connect = loop.create_connection

    async def create(factory: Any, host: str, *args: Any, **options: Any) -> Any:
        await before(host)
        return await connect(factory, host, *args, **options)

    patched.setattr(loop, "create_connection", create)


def fails(patched: pytest.MonkeyPatch, errors: Mapping[str, list[OSError]]) -> None:
    """Make the first connections to some addresses fail."""

    async def fail(host: str) -> None:
        if errors.get(host):
            raise errors[host].pop(0)

    connects(patched, fail)


# ---- one answer ----------------------------------------------------------------------------------


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
        result = await WithTimeout(probe_of(f"http://127.0.0.1:{gateway.port}/"), seconds)()
        figures.info("%s in %.3f s", result.reason, taking.on_the_wall)
        assert taking.seconds < SHORT + 0.2
    assert result == ProbeResult(ready=False, reason=reason)


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "localhost", "localhost."])
async def test_a_refused_connection_is_a_value(host: str) -> None:
    """A port without a listener has a reason."""
    with nobody() as port:
        assert await probed(f"http://{host}:{port}/") == not_ready(ReasonKind.REFUSED)


async def test_a_name_that_does_not_resolve_is_a_value(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name without an address has a reason."""
    monkeypatch.setattr(socket, "getaddrinfo", resolves())
    assert await probed("http://gateway.invalid:1/") == not_ready(ReasonKind.NAME_UNRESOLVED)


@pytest.mark.parametrize("error", [errno.ENETUNREACH, errno.ETIMEDOUT, errno.EAFNOSUPPORT])
async def test_an_unreachable_target_is_a_value(
    monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    """A connection that the kernel does not try, or gives up, has a reason."""
    fails(monkeypatch, {"127.0.0.1": [OSError(error, "text")], "::1": [OSError(error, "text")]})
    assert await probed("http://localhost:1/") == not_ready(ReasonKind.UNREACHABLE)


async def test_a_body_that_streams_for_ever_is_not_read() -> None:
    """The status line and the headers are the answer."""
    behaviour = repeats(b"x" * 1000, first=b"HTTP/1.1 200 OK\r\n\r\n")
    async with target(behaviour) as gateway:
        assert await probed(f"http://127.0.0.1:{gateway.port}/") == READY


async def test_headers_may_be_long() -> None:
    """Headers that proxies add do not fail a probe, up to 100 KiB."""
    async with target(answers(200, b"x: %s\r\n" % (b"a" * 100_000))) as gateway:
        assert await probed(f"http://127.0.0.1:{gateway.port}/") == READY


async def test_a_response_head_counts_whatever_becomes_of_its_connection() -> None:
    """A target that resets the connection right after its response headers is judged by them."""

    async def resets_after(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n")
        await resets(_, writer)

    async with target(resets_after) as gateway:
        for _ in range(50):
            assert await probed(f"http://127.0.0.1:{gateway.port}/") == READY


async def test_a_switch_of_protocols_ends_a_probe() -> None:
    """Trap 10: a 101 to a request with `Upgrade` is a status code, and not an endless loop."""
    switching = says(b"HTTP/1.1 101 Switching\r\nupgrade: h2c\r\nconnection: upgrade\r\n\r\n")
    headers = {"Upgrade": "h2c", "Connection": "upgrade"}
    async with target(switching) as gateway:
        found = await probed(f"http://127.0.0.1:{gateway.port}/", headers=headers)
    assert found == ProbeResult(ready=False, reason=answered(101))


# ---- the request ---------------------------------------------------------------------------------


async def request_to(gateway: Target, **options: Any) -> list[str]:
    """Return the lines of the request that one probe sends."""
    await probed(f"http://127.0.0.1:{gateway.port}/healthz/ready?full=1", **options)
    return gateway.requests[-1].decode().strip().split("\r\n")


async def test_what_is_sent() -> None:
    """A GET of the URL, from a named client; the operator's headers replace those of ghealth."""
    async with target(answers(200)) as gateway:
        plain = await request_to(gateway)
        replaced = await request_to(gateway, headers={"host": "ready.example", "X-Key": "k"})
    others = [f"User-Agent: ghealth/{__version__}", "Accept: */*", "Connection: close"]
    line = "GET /healthz/ready?full=1 HTTP/1.1"
    assert plain == [line, f"Host: 127.0.0.1:{gateway.port}", *others]
    assert sorted(replaced) == sorted([line, "host: ready.example", *others, "X-Key: k"])


async def test_user_info_becomes_basic_authentication() -> None:
    """A user and password in the URL are sent as a header, and not in the request line."""
    async with target(answers(200)) as gateway:
        await probed(f"http://me:p%40ss@127.0.0.1:{gateway.port}/x#part")
    expected = base64.b64encode(b"me:p@ss").decode()
    assert f"Authorization: Basic {expected}".encode() in gateway.requests[0]
    assert gateway.requests[0].startswith(b"GET /x HTTP/1.1\r\n")


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy", "ALL_PROXY"])
async def test_proxy_variables_are_ignored(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    """The loopback probe is not sent through a proxy."""
    monkeypatch.delenv("NO_PROXY", raising=False)
    async with target(answers(502)) as proxy, target(answers(200)) as gateway:
        monkeypatch.setenv(variable, f"http://127.0.0.1:{proxy.port}")
        assert (await probed(f"http://127.0.0.1:{gateway.port}/")).ready
    assert proxy.requests == []


# ---- connections ---------------------------------------------------------------------------------


async def answers_and_waits(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
    await hung_up(reader)


async def test_each_probe_has_a_new_connection_and_leaves_none() -> None:
    """Nothing is kept alive, and no port stays in TIME_WAIT, even if the target does not close."""
    closed = asyncio.Event()

    async def stays(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await answers_and_waits(reader, writer)
        closed.set()
        await hangs()

    async with target(stays) as gateway, asyncio.timeout(LONG):
        reused = probe_of(f"http://127.0.0.1:{gateway.port}/")
        for _ in range(3):
            closed.clear()
            assert await reused() == READY
            await closed.wait()
    assert len(gateway.requests) == 3
    assert all(b"Connection: close" in request for request in gateway.requests)
    sockets = await asyncio.to_thread(TCP_TABLE.read_text)
    time_wait = f":{gateway.port:04X} 06 "
    assert [line for line in sockets.splitlines() if time_wait in line] == []


async def test_a_probe_imports_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without sniffio, httpcore would search for it several times in each probe."""
    searched: list[str] = []

    class Finder:
        @staticmethod
        def find_spec(name: str, *_: object) -> None:
            searched.append(name)

    async with target(answers(200)) as gateway:
        reused = probe_of(f"http://127.0.0.1:{gateway.port}/")
        assert await reused() == READY
        monkeypatch.setattr(sys, "meta_path", [Finder, *sys.meta_path])
        assert await reused() == READY
    assert searched == []


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_cancelling_a_probe_at_any_await_leaves_nothing(scheme: str) -> None:
    """Wherever a probe is cancelled, its connection is closed and no task is left (trap 37)."""
    tls = server_context("localhost") if scheme == "https" else None
    async with target(answers_and_waits, tls=tls) as gateway, asyncio.timeout(3 * LONG):
        cancelled = probe_of(f"{scheme}://localhost:{gateway.port}/", trust=trust())
        before = asyncio.all_tasks()
        for turns in itertools.count():
            attempt = asyncio.create_task(cancelled())
            for _ in range(turns):
                await asyncio.sleep(0)
            attempt.cancel()
            await asyncio.wait((attempt,))
            assert attempt.cancelled() or attempt.result().ready
            while asyncio.all_tasks() != before:  # noqa: ASYNC110 - until the peer has seen the end
                await asyncio.sleep(0)
            if not attempt.cancelled():
                break
        assert turns > 5, "there are more awaits than that"


LACKING = [errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM]


@pytest.mark.parametrize("error", [*LACKING, errno.EADDRNOTAVAIL])
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_a_lack_of_resources_here_is_not_the_targets_fault(
    monkeypatch: pytest.MonkeyPatch, host: str, error: int
) -> None:
    """Without a free descriptor, port, thread or buffer here, a probe tries again."""
    errors = [OSError(error, "none left")]
    async with target(answers(200)) as gateway:
        fails(monkeypatch, {"127.0.0.1": errors, "::1": [OSError(error, "none left")]})
        assert (await probed(f"http://{host}:{gateway.port}/")).ready
    assert errors == []


@in_virtual_time
async def test_attempts_without_a_descriptor_are_a_moment_apart() -> None:
    """A probe that waits for a descriptor does not use the processor while it waits."""
    loop = asyncio.get_running_loop()
    errors = [*[OSError(errno.EMFILE, "Too many open files")] * 4, ConnectionRefusedError(111, "")]
    with pytest.MonkeyPatch.context() as patched:
        fails(patched, {"127.0.0.1": errors})
        assert await probed("http://127.0.0.1:1/") == not_ready(ReasonKind.REFUSED)
    assert loop.time() == pytest.approx(4 * 0.05)


# ---- addresses -----------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_localhost_is_either_loopback_address(
    monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    """`localhost` reaches a listener on either address alone, without the resolver."""
    async with target(answers(200), host=host) as gateway:
        monkeypatch.setattr(socket, "getaddrinfo", resolves())
        assert await probed(f"http://localhost:{gateway.port}/") == READY
        assert f"Host: localhost:{gateway.port}".encode() in gateway.requests[0]


async def hangs(*_: object) -> None:
    await asyncio.Event().wait()


async def test_dead_addresses_do_not_hide_a_live_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Six addresses that do not answer cost six delays, not six timeouts; one gets the request."""
    tried = []

    async def all_but_one_hang(host: str) -> None:
        tried.append(host)
        if host != "127.0.0.1":
            await hangs()

    dead = [f"127.0.0.{number}" for number in range(2, 8)]
    monkeypatch.setattr(probe, "CONNECTION_ATTEMPT_DELAY", 0.01)
    async with target(answers(200)) as gateway:
        monkeypatch.setattr(socket, "getaddrinfo", resolves(*dead, "127.0.0.1"))
        connects(monkeypatch, all_but_one_hang)
        before = asyncio.all_tasks()
        assert await probed(f"http://gateway.test:{gateway.port}/") == READY
        assert asyncio.all_tasks() - before <= gateway.talks
    assert tried == [*dead, "127.0.0.1"]
    assert len(gateway.requests) == 1


async def test_a_refusing_address_does_not_wait_for_the_delay(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After a refused connection the next address is tried at once, and others not at all."""
    monkeypatch.setattr(socket, "getaddrinfo", resolves("127.0.0.2", "127.0.0.1", "127.0.0.3"))
    monkeypatch.setattr(probe, "CONNECTION_ATTEMPT_DELAY", 2 * LONG)
    async with target(answers(200)) as gateway:
        fails(monkeypatch, {"127.0.0.3": [OSError(errno.EPERM, "it was tried")]})
        assert await probed(f"http://gateway.test:{gateway.port}/") == READY


async def test_a_slow_address_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A gateway on 127.0.0.1 that accepts late is judged, although ::1 has refused."""
    refused = asyncio.Event()

    async def late(host: str) -> None:
        if host == "127.0.0.1":
            await refused.wait()
        else:
            asyncio.get_running_loop().call_later(0.01, refused.set)

    monkeypatch.setattr(probe, "CONNECTION_ATTEMPT_DELAY", 0)
    async with target(answers(200)) as gateway:
        connects(monkeypatch, late)
        assert await probed(f"http://localhost:{gateway.port}/") == READY


async def test_of_two_addresses_that_accept_one_gets_the_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The later connection is closed without a request."""
    both = asyncio.Barrier(2)
    loop = asyncio.get_running_loop()
    connect = loop.create_connection

    async def together(*args: Any, **options: Any) -> Any:
        made = await connect(*args, **options)
        await both.wait()
        return made

    monkeypatch.setattr(probe, "CONNECTION_ATTEMPT_DELAY", 0)
    async with target(answers(200), host="0.0.0.0") as gateway, asyncio.timeout(LONG):
        monkeypatch.setattr(socket, "getaddrinfo", resolves("127.0.0.1", "127.0.0.2"))
        monkeypatch.setattr(loop, "create_connection", together)
        assert await probed(f"http://gateway.test:{gateway.port}/") == READY
        await asyncio.gather(*gateway.talks)
    assert len(gateway.requests) == 1


@in_virtual_time
async def test_addresses_are_tried_a_quarter_of_a_second_apart() -> None:
    """That is the delay that RFC 8305 recommends."""
    loop = asyncio.get_running_loop()
    tried = []

    async def hang(host: str) -> None:
        tried.append((host, loop.time()))
        await hangs()

    with pytest.MonkeyPatch.context() as patched:
        connects(patched, hang)
        assert not (await WithTimeout(probe_of("http://localhost/"), 1, clock=loop.time)()).ready
    assert [host for host, _ in tried] == ["127.0.0.1", "::1"]
    assert [when for _, when in tried] == pytest.approx([0, 0.25], abs=0.001)


@pytest.mark.parametrize("error", [errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT, errno.ENETUNREACH])
@pytest.mark.parametrize("lacks", ["127.0.0.1", "::1"])
@in_virtual_time
async def test_an_address_of_a_family_that_the_node_lacks_names_no_reason(
    lacks: str, error: int
) -> None:
    """Trap 36: of several addresses, another one names the reason, at once."""
    (other,) = {"127.0.0.1", "::1"} - {lacks}
    with pytest.MonkeyPatch.context() as patched:
        refused: list[OSError] = [ConnectionRefusedError(111, "x")]
        fails(patched, {lacks: [OSError(error, "x")], other: refused})
        assert await probed("http://localhost:1/") == not_ready(ReasonKind.REFUSED)
    assert asyncio.get_running_loop().time() == pytest.approx(0, abs=0.001)


async def test_a_lack_of_descriptors_for_a_later_address_is_no_refusal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A gateway on ::1 alone is not called refusing because there was no descriptor for it."""
    async with target(answers(200), host="::1") as gateway:
        fails(monkeypatch, {"::1": [OSError(errno.EMFILE, "Too many open files")]})
        assert await probed(f"http://localhost:{gateway.port}/") == READY


async def test_a_look_up_that_hangs_is_shared_by_the_probes_of_a_target(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A name server that does not answer holds one thread, however many probes are cancelled."""
    answer, calls = threading.Event(), []

    def look_up(host: str, *_: object, flags: int = 0, **__: object) -> list[Any]:
        if not flags:
            calls.append(host)
            answer.wait(LONG)
        return resolves("127.0.0.1")(host, flags=flags)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    async with target(answers(200)) as gateway:
        named = probe_of(f"http://gateway.test:{gateway.port}/")
        for _ in range(10):
            assert not (await WithTimeout(named, 0.01)()).ready
        answer.set()
        assert (await named()).ready
    assert calls == ["gateway.test"]


# ---- TLS -----------------------------------------------------------------------------------------


def server_context(
    *names: str,
    authority: trustme.CA = AUTHORITY,
    version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3,
    days: tuple[int, int] = (-2, 2),
) -> ssl.SSLContext:
    """Make a server's context with a certificate, valid between two days from now."""
    start, end = (dt.datetime.now(dt.UTC) + dt.timedelta(days=day) for day in days)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = context.maximum_version = version
    authority.issue_cert(*names, not_before=start, not_after=end).configure_cert(context)
    return context


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"authority": trustme.CA()}, ReasonKind.CERTIFICATE_AUTHORITY),
        ({"days": (-2, -1)}, ReasonKind.CERTIFICATE_EXPIRED),
        ({"days": (1, 2)}, ReasonKind.CERTIFICATE),
        ({"names": ("other.example",)}, ReasonKind.CERTIFICATE_NAME),
        ({"names": ("127.0.0.1", "::1")}, ReasonKind.CERTIFICATE_NAME),
        ({}, None),
    ],
)
async def test_a_certificate_that_does_not_verify_names_the_cause(
    options: dict[str, Any], kind: ReasonKind | None
) -> None:
    """The authority, the time and the name in the URL have different reasons."""
    rest = {name: value for name, value in options.items() if name != "names"}
    context = server_context(*options.get("names", ("localhost",)), **rest)
    async with target(answers(200), tls=context) as gateway:
        found = await probed(f"https://localhost:{gateway.port}/")
    assert found == (READY if kind is None else not_ready(kind))


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_a_certificate_can_be_of_an_ip_address(host: str) -> None:
    """An IP address in the URL is what the certificate must have, and no name."""
    url = f"https://{f'[{host}]' if ':' in host else host}"
    async with (
        target(answers(200), host=host, tls=server_context(host)) as good,
        target(answers(200), host=host, tls=server_context("localhost")) as other,
    ):
        assert await probed(f"{url}:{good.port}/") == READY
        assert await probed(f"{url}:{other.port}/") == not_ready(ReasonKind.CERTIFICATE_NAME)


@pytest.mark.parametrize("name", ["gw.example", "gw.example."])
async def test_a_final_dot_is_for_dns_alone(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """SNI and the certificate have the name without it (RFC 6066); the look-up has it."""
    asked: list[str] = []
    shown: list[str] = []
    find = resolves("127.0.0.1")

    def look_up(host: str, *_: object, **options: Any) -> list[Any]:
        asked.append(host)
        return find(host, **options)

    tls = server_context("gw.example")
    tls.sni_callback = lambda _, shown_name, __: shown.append(shown_name)
    async with target(answers(200), tls=tls) as gateway:
        monkeypatch.setattr(socket, "getaddrinfo", look_up)
        assert await probed(f"https://{name}:{gateway.port}/") == READY
    assert (set(asked), shown) == ({name}, ["gw.example"])


VERSIONS = (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    "record", [b"HTTP/1.1 400 Bad\r\n\r\n", b"\x17\x03\x03\x00\x20" + bytes(32)]
)
async def test_tls_that_fails_after_the_handshake_is_a_value(
    version: ssl.TLSVersion, record: bytes
) -> None:
    """Trap 30: plain text, or a record that does not verify, is not a bug of ghealth."""

    async def breaks(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        os.write(writer.get_extra_info("socket").fileno(), record)

    async with target(breaks, tls=server_context("localhost", version=version)) as gateway:
        assert await probed(f"https://localhost:{gateway.port}/") == not_ready(ReasonKind.TLS)


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_missing_client_certificate_is_a_value(version: ssl.TLSVersion) -> None:
    """With TLS 1.3 the alert comes after the handshake, and a reset may overtake it."""
    tls = server_context("localhost", version=version)
    tls.verify_mode = ssl.CERT_REQUIRED
    async with target(answers(200), tls=tls) as gateway:
        for _ in range(10):
            found = await probed(f"https://localhost:{gateway.port}/")
            assert found.reason.kind in (ReasonKind.TLS, ReasonKind.TLS_RESET)


@pytest.mark.parametrize(
    ("behaviour", "kind"),
    [
        (says(b""), ReasonKind.TLS),
        (says(b"HTTP/1.1 400 Bad\r\n\r\n"), ReasonKind.TLS),
        (resets, ReasonKind.TLS_RESET),
    ],
)
async def test_a_handshake_that_fails_is_a_value(behaviour: Behaviour, kind: ReasonKind) -> None:
    """A target that hangs up, has no TLS or resets the connection has a reason that names TLS."""

    async def after_the_hello(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(4096)
        await behaviour(reader, writer)

    async with target(after_the_hello, reads=False) as gateway:
        assert await probed(f"https://localhost:{gateway.port}/") == not_ready(kind)


async def test_a_plain_target_needs_no_tls(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenSSL without ciphers can create no SSL context: a probe by http works all the same."""

    def broken(*_: object, **__: object) -> Any:
        raise ssl.SSLError(1, "library has no ciphers")

    monkeypatch.setattr(ssl, "SSLContext", broken)
    monkeypatch.setattr(ssl, "create_default_context", broken)
    async with target(answers(200)) as gateway:
        assert await probed(f"http://127.0.0.1:{gateway.port}/") == READY


# ---- several probes, and time --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("results", "expected"),
    [
        ((SICK, READY, SICK), (False, "probe 1 of 3: gateway answered 503")),
        ((READY, SICK, READY), (False, "probe 2 of 3: gateway answered 503")),
        (
            (READY, READY, ProbeResult(ready=True, reason=answered(204))),
            (True, "gateway answered 204"),
        ),
    ],
)
async def test_several_probes_are_ready_if_all_are(results: Any, expected: Any) -> None:
    """The reason is that of the first probe that is not ready, otherwise of the last one."""
    found = await AllOf([FakeProbe(result) for result in results])()
    assert (found.ready, str(found.reason)) == expected


@in_virtual_time
async def test_a_bug_in_one_of_several_probes_is_no_cancellation() -> None:
    """It is raised, ends the other probes, and does not count as a cancellation of the task."""
    hanging = FakeProbe()
    hanging.gate.clear()
    with pytest.raises(ZeroDivisionError):
        await AllOf([hanging, FakeProbe(ZeroDivisionError())])()
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    await asyncio.sleep(0)
    assert hanging.under_way == 0


@in_virtual_time
async def test_a_cancelled_group_of_probes_leaves_nothing() -> None:
    """Cancelling several probes cancels each of them."""
    hanging = FakeProbe()
    hanging.gate.clear()
    before = asyncio.all_tasks()
    with suppress(TimeoutError):
        async with asyncio.timeout(1):
            await AllOf([FakeProbe(), hanging])()
    assert hanging.under_way == 0
    assert asyncio.all_tasks() == before


@in_virtual_time
async def test_several_probes_share_one_timeout() -> None:
    """Probes run side by side; one that hangs is named, and costs the timeout once."""
    hanging = FakeProbe()
    hanging.gate.clear()
    loop = asyncio.get_running_loop()
    several: list[Probe] = [
        WithTimeout(one, 3, clock=loop.time) for one in (FakeProbe(), hanging, hanging)
    ]
    found = await AllOf(several)()
    assert loop.time() == pytest.approx(3)
    assert str(found.reason) == "probe 2 of 3: no answer within 3 s"


@in_virtual_time
async def test_a_timeout_after_a_task_group_has_failed_is_one() -> None:
    """In Python 3.11 and 3.12 the group leaves the task as if it had been cancelled."""

    async def probe() -> ProbeResult:
        with suppress(ExceptionGroup):
            async with asyncio.TaskGroup() as group:
                group.create_task(FakeProbe(ZeroDivisionError())())
        await asyncio.sleep(10)
        return READY

    found = await WithTimeout(probe, 3, clock=asyncio.get_running_loop().time)()
    assert found == ProbeResult(ready=False, reason=Reason(ReasonKind.TIMED_OUT, "3 s"))


@pytest.mark.parametrize("error", [TimeoutError(), asyncio.CancelledError()])
async def test_only_the_time_limit_is_a_timeout(error: BaseException) -> None:
    """What a probe raises by itself is a bug, also if it is a TimeoutError."""
    with pytest.raises(type(error)):
        await WithTimeout(FakeProbe(error), 3)()


@pytest.mark.parametrize(("seconds", "ready"), [(3.0, True), (3.001, False)])
async def test_a_result_at_the_time_limit_counts(seconds: float, ready: bool) -> None:
    """After a SIGSTOP a result that came too late by the clock is a timeout (trap 11)."""
    clock = iter((0.0, seconds))
    found = await WithTimeout(FakeProbe(), 3, clock=lambda: next(clock))()
    assert found.ready is ready


def test_a_custom_reason() -> None:
    """A probe outside the package gives its reason as a text."""
    found = ProbeResult.because("queue is full", ready=False)
    assert (found.ready, str(found.reason)) == (False, "queue is full")

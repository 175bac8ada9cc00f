import asyncio
import datetime as dt
import errno
import itertools
import os
import socket
import ssl
import sys
from collections.abc import AsyncGenerator
from contextlib import suppress
from functools import partial
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import httpx
import pytest
import trustme

from ghealth import __version__, probe
from ghealth.address import LOOPBACK
from ghealth.health import Reason, ReasonKind
from ghealth.matcher import HTTP_CODES, Matcher
from ghealth.probe import AllOf, HttpProbe, ProbeResult, WithTimeout
from tests.support import peers
from tests.support.fakes import READY, SICK, FakeProbe, answered, hanging
from tests.support.peers import Behaviour, Target, answers, nobody, repeats, resets, says, target
from tests.support.virtual import in_virtual_time

SHORT, LONG = 0.3, 20.0
"""Seconds for a target that never answers, and for one that does."""

HEAD = b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n"
CODES = Matcher.parse("200-299", HTTP_CODES)
AUTHORITY = trustme.CA()
TRUST = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
AUTHORITY.configure_trust(TRUST)


def probe_of(url: str, **headers: str) -> HttpProbe:
    """Make a probe of a URL."""
    trust = TRUST if url.startswith("https") else None
    return HttpProbe(httpx.URL(url), success_codes=CODES, headers=headers, trust=trust)


async def probed(url: str, **headers: str) -> ProbeResult:
    """Probe once; a probe that does not end fails the test."""
    async with asyncio.timeout(LONG):
        return await probe_of(url, **headers)()


@pytest.fixture
async def gateway() -> AsyncGenerator[Target, None]:
    """A target on 127.0.0.1 that is ready."""
    async with target(answers(200)) as ready:
        yield ready


async def hangs(*_: object) -> None:
    await asyncio.Event().wait()


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The look-ups and connections of this process, as a test changes them.

    Every name has the `addresses`; `waits` is called in each look-up. The first connections to an
    address have its `errors`, those to `dead` ones hang; `connected` is called after the others.
    """
    getaddrinfo, create = socket.getaddrinfo, asyncio.BaseEventLoop.create_connection
    made = SimpleNamespace(addresses=[], waits=bool, look_ups=[])
    made.errors, made.dead, made.tried, made.connected = {}, [], {}, asyncio.sleep
    made.delay = partial(monkeypatch.setattr, probe, "CONNECTION_ATTEMPT_DELAY")

    def look_up(host: str, port: Any, *, flags: int = 0, **options: Any) -> list[Any]:
        if flags & socket.AI_NUMERICHOST:
            return getaddrinfo(host, port, flags=flags, **options)
        made.look_ups.append(host)
        made.waits()
        if not made.addresses:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (one, 0)) for one in made.addresses]

    async def connect(loop: Any, factory: Any, host: str, *args: Any, **options: Any) -> Any:
        made.tried[host] = loop.time()
        if errors := made.errors.get(host):
            raise OSError(errors.pop(0), "text")
        if host in made.dead:
            await hangs()
        connection = await create(loop, factory, host, *args, **options)
        await made.connected(0)
        return connection

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    monkeypatch.setattr(asyncio.BaseEventLoop, "create_connection", connect)
    return made


# ---- one answer ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "ready"), [(200, True), (204, True), (299, True), (301, False), (404, False)]
)
async def test_the_status_code_decides(code: int, ready: bool) -> None:
    """A success code is ready, any other is not, and a redirect is not followed."""
    async with target(answers(code, b"location: /elsewhere\r\n")) as gateway:
        assert await probed(gateway.url) == ProbeResult(ready, answered(code))
    assert len(gateway.requests) == 1


async def resets_after_the_head(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(HEAD)
    await resets(reader, writer)


@pytest.mark.parametrize(
    "behaviour",
    [
        pytest.param(repeats(b"x" * 1000, first=HEAD), id="endless body"),
        pytest.param(answers(200, b"x: %s\r\n" % (b"a" * 100_000)), id="100 KiB of headers"),
        pytest.param(resets_after_the_head, id="a reset right after it"),
    ],
)
async def test_a_response_head_counts_whatever_becomes_of_its_connection(
    behaviour: Behaviour,
) -> None:
    """Its status code is the result; the body is not read."""
    async with target(behaviour) as gateway:
        for _ in range(50):
            assert await probed(gateway.url) == READY


CLOSED, NOT_HTTP = Reason(ReasonKind.CLOSED), Reason(ReasonKind.NOT_HTTP)
TIMED_OUT = Reason(ReasonKind.TIMED_OUT, "0.3 s")
UPGRADE = b"HTTP/1.1 101 Switching\r\nupgrade: h2c\r\nconnection: upgrade\r\n\r\n"
MISBEHAVIOURS = {
    "no answer": (says(b""), CLOSED),
    "another protocol": (says(b"SSH-2.0-OpenSSH_9.2\r\n"), CLOSED),
    "half a status line": (says(b"HTTP/1.1 20"), CLOSED),
    "half the headers": (says(b"HTTP/1.1 200 OK\r\nserver: x"), CLOSED),
    "garbage": (says(b"garbage\r\n\r\n"), NOT_HTTP),
    "a code of two digits": (says(b"HTTP/1.1 99 OK\r\n\r\n"), NOT_HTTP),
    "zeros": (says(b"\0" * 200_000), NOT_HTTP),
    "an upgrade": (says(UPGRADE), NOT_HTTP),
    "headers without end": (repeats(b"x: y\r\n" * 1000, first=b"HTTP/1.1 200 OK\r\n"), NOT_HTTP),
    "silence": (peers.is_silent, TIMED_OUT),
    "a slow status line": (repeats(b"H", every=0.05), TIMED_OUT),
    "slow headers": (repeats(b"x: y\r\n", first=b"HTTP/1.1 200 OK\r\n", every=0.05), TIMED_OUT),
    "continues": (repeats(b"HTTP/1.1 100 Continue\r\n\r\n", every=0.001), TIMED_OUT),
    "a reset": (resets, Reason(ReasonKind.RESET)),
}


@pytest.mark.parametrize(("behaviour", "reason"), MISBEHAVIOURS.values(), ids=MISBEHAVIOURS)
async def test_every_misbehaviour_is_a_value_in_time(behaviour: Behaviour, reason: Reason) -> None:
    """However a target misbehaves, the result is not ready with a fixed reason, in time."""
    seconds = SHORT if reason is TIMED_OUT else LONG
    async with target(behaviour) as gateway, asyncio.timeout(LONG):
        result = await WithTimeout(probe_of(gateway.url), seconds)()
    assert result == ProbeResult(ready=False, reason=reason)


@pytest.mark.usefixtures("network")
async def test_a_name_that_does_not_resolve_is_a_value() -> None:
    """A name without an address has a reason."""
    found = await probed("http://gateway.invalid:1/")
    assert found.reason.kind is ReasonKind.NAME_UNRESOLVED


@pytest.mark.parametrize("error", [errno.ENETUNREACH, errno.ETIMEDOUT, errno.EAFNOSUPPORT])
async def test_an_unreachable_target_is_a_value(network: SimpleNamespace, error: int) -> None:
    """A connection that the kernel does not try, or gives up, has a reason."""
    network.errors = {address: [error] for address in LOOPBACK}
    assert (await probed("http://localhost:1/")).reason.kind is ReasonKind.UNREACHABLE


async def test_a_switch_of_protocols_ends_a_probe() -> None:
    """Trap 10: a 101 to a request with `Upgrade` is a status code, and not an endless loop."""
    async with target(says(UPGRADE)) as gateway:
        found = await probed(gateway.url, Upgrade="h2c", Connection="upgrade")
    assert found == ProbeResult(ready=False, reason=answered(101))


# ---- the request ---------------------------------------------------------------------------------


async def test_what_is_sent(gateway: Target) -> None:
    """A GET of the URL, its user info as a header; the operator's headers replace ghealth's."""
    url = f"127.0.0.1:{gateway.port}/healthz/ready?full=1"
    await probed(f"http://{url}")
    await probed(f"http://me:p%40ss@{url}#part", host="ready.example", **{"X-Key": "k"})
    plain, changed = (request.decode().split("\r\n")[:-2] for request in gateway.requests)
    line = "GET /healthz/ready?full=1 HTTP/1.1"
    others = [f"User-Agent: ghealth/{__version__}", "Accept: */*", "Connection: close"]
    assert plain == [line, f"Host: 127.0.0.1:{gateway.port}", *others]
    own = ["host: ready.example", "X-Key: k", "Authorization: Basic bWU6cEBzcw=="]
    assert sorted(changed) == sorted([line, *others, *own])


async def test_proxy_variables_are_ignored(
    monkeypatch: pytest.MonkeyPatch, gateway: Target
) -> None:
    """The loopback probe is not sent through a proxy."""
    monkeypatch.delenv("NO_PROXY", raising=False)
    with nobody() as port:
        for variable in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
            monkeypatch.setenv(variable, f"http://127.0.0.1:{port}")
        assert await probed(gateway.url) == READY


# ---- connections ---------------------------------------------------------------------------------


async def answers_and_waits(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(HEAD)
    await peers.hung_up(reader)


async def time_wait(gateway: Target) -> int:
    """Count connections from or to a port that are in TIME_WAIT; earlier ones can be others'."""
    sockets = await asyncio.to_thread(Path("/proc/net/tcp").read_text)
    return sockets.count(f":{gateway.port:04X} 06 ")


async def test_each_probe_has_a_new_connection_and_leaves_none() -> None:
    """Nothing is kept alive, and no port stays in TIME_WAIT, even if the target does not close."""
    closed = asyncio.Semaphore(0)

    async def stays(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await answers_and_waits(reader, writer)
        closed.release()
        await hangs()

    async with target(stays) as gateway, asyncio.timeout(LONG):
        before = await time_wait(gateway)
        reused = probe_of(gateway.url)
        for _ in range(3):
            assert await reused() == READY
            await closed.acquire()
    assert await time_wait(gateway) <= before


async def test_a_probe_imports_nothing(monkeypatch: pytest.MonkeyPatch, gateway: Target) -> None:
    """Without sniffio, httpcore would search for it several times in each probe."""
    assert await probed(gateway.url) == READY
    finder = Mock()
    monkeypatch.setattr(sys, "meta_path", [finder])
    assert await probed(gateway.url) == READY
    assert finder.mock_calls == []


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_cancelling_a_probe_at_any_await_leaves_nothing(scheme: str) -> None:
    """Wherever a probe is cancelled, its connection is closed and no task is left (trap 37)."""
    tls = server_context("localhost") if scheme == "https" else None
    async with target(answers_and_waits, tls=tls) as gateway, asyncio.timeout(3 * LONG):
        cancelled = probe_of(f"{scheme}://localhost:{gateway.port}/")
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


@pytest.mark.parametrize(
    ("host", "error"),
    [("127.0.0.1", errno.EADDRNOTAVAIL), *itertools.product(("127.0.0.1", "localhost"), LACKING)],
)
async def test_a_lack_of_resources_here_is_not_the_targets_fault(
    network: SimpleNamespace, gateway: Target, host: str, error: int
) -> None:
    """Without a free descriptor, port, thread or buffer here, a probe tries again.

    So it does if another address has refused.
    """
    network.errors = {"127.0.0.1": [error], "::1": [errno.ECONNREFUSED]}
    assert await probed(f"http://{host}:{gateway.port}/") == READY


@in_virtual_time
async def test_attempts_without_a_descriptor_are_a_moment_apart(network: SimpleNamespace) -> None:
    """A probe that waits for a descriptor does not use the processor while it waits."""
    network.errors = {"127.0.0.1": [*[errno.EMFILE] * 4, errno.ECONNREFUSED]}
    assert (await probed("http://127.0.0.1:1/")).reason.kind is ReasonKind.REFUSED
    assert asyncio.get_running_loop().time() == pytest.approx(4 * 0.05)


# ---- addresses -----------------------------------------------------------------------------------


@pytest.mark.parametrize("host", LOOPBACK)
@pytest.mark.usefixtures("network")
async def test_localhost_is_either_loopback_address(host: str) -> None:
    """`localhost` reaches a listener on either address alone, without the resolver."""
    async with target(answers(200), host=host) as gateway:
        assert await probed(f"http://localhost:{gateway.port}/") == READY
        assert f"Host: localhost:{gateway.port}".encode() in gateway.requests[0]


async def test_dead_addresses_do_not_hide_a_live_one(
    network: SimpleNamespace, gateway: Target
) -> None:
    """Six addresses that do not answer cost six delays, not six timeouts; one gets the request."""
    network.delay(0.01)
    network.dead = [f"127.0.0.{number}" for number in range(2, 8)]
    network.addresses = [*network.dead, "127.0.0.1"]
    before = asyncio.all_tasks()
    assert await probed(f"http://gateway.test:{gateway.port}/") == READY
    assert asyncio.all_tasks() - before <= gateway.talks
    assert list(network.tried) == network.addresses
    assert len(gateway.requests) == 1


async def test_a_refusing_address_does_not_wait_for_the_delay(
    network: SimpleNamespace, gateway: Target
) -> None:
    """After a refused connection the next address is tried at once, and others not at all."""
    network.delay(2 * LONG)
    network.addresses = ["127.0.0.2", "127.0.0.1", "127.0.0.3"]
    assert await probed(f"http://gateway.test:{gateway.port}/") == READY
    assert list(network.tried) == ["127.0.0.2", "127.0.0.1"]


async def test_a_slow_address_is_waited_for(network: SimpleNamespace, gateway: Target) -> None:
    """A gateway on 127.0.0.1 that accepts late is judged, although ::1 has refused."""
    network.delay(0)
    network.errors = {"::1": [errno.ECONNREFUSED]}
    network.connected = lambda _: asyncio.sleep(0.05)
    assert await probed(f"http://localhost:{gateway.port}/") == READY


async def test_of_two_addresses_that_accept_one_gets_the_request(network: SimpleNamespace) -> None:
    """The later connection is closed without a request."""
    both = asyncio.Barrier(2)
    network.delay(0)
    network.addresses = ["127.0.0.1", "127.0.0.2"]
    network.connected = lambda _: both.wait()
    async with target(answers(200), host="0.0.0.0") as gateway, asyncio.timeout(LONG):
        assert await probed(f"http://gateway.test:{gateway.port}/") == READY
        await asyncio.gather(*gateway.talks)
    assert len(gateway.requests) == 1


@in_virtual_time
async def test_addresses_are_tried_a_quarter_of_a_second_apart(network: SimpleNamespace) -> None:
    """That is the delay that RFC 8305 recommends."""
    network.dead = LOOPBACK
    clock = asyncio.get_running_loop().time
    assert not (await WithTimeout(probe_of("http://localhost/"), 1, clock=clock)()).ready
    assert network.tried == pytest.approx({"127.0.0.1": 0, "::1": 0.25}, abs=0.001)


@pytest.mark.parametrize("error", [errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT, errno.ENETUNREACH])
@pytest.mark.parametrize(("lacks", "other"), [LOOPBACK, LOOPBACK[::-1]])
@in_virtual_time
async def test_an_address_of_a_family_that_the_node_lacks_names_no_reason(
    network: SimpleNamespace, lacks: str, other: str, error: int
) -> None:
    """Trap 36: of several addresses, another one names the reason, at once."""
    network.errors = {lacks: [error], other: [errno.ECONNREFUSED]}
    assert (await probed("http://localhost:1/")).reason.kind is ReasonKind.REFUSED
    assert asyncio.get_running_loop().time() == pytest.approx(0, abs=0.001)


async def test_a_look_up_that_hangs_is_shared_by_the_probes_of_a_target(
    network: SimpleNamespace, gateway: Target
) -> None:
    """A name server that does not answer holds one thread, and its late answer is used."""
    answer = Event()
    network.addresses = ["127.0.0.1"]
    network.waits = lambda: answer.wait(LONG)
    named = probe_of(f"http://gateway.test:{gateway.port}/")
    for _ in range(10):
        assert not (await WithTimeout(named, 0.01)()).ready
    answer.set()
    assert await named() == READY
    assert network.look_ups == ["gateway.test"]


# ---- TLS -----------------------------------------------------------------------------------------


def server_context(
    *names: str,
    authority: trustme.CA = AUTHORITY,
    version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3,
    **validity: Any,
) -> ssl.SSLContext:
    """Make a server's context with a certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = context.maximum_version = version
    authority.issue_cert(*names, **validity).configure_cert(context)
    return context


NOW, DAY = dt.datetime.now(dt.UTC), dt.timedelta(days=1)


@pytest.mark.parametrize(
    ("host", "name", "options", "kind"),
    [
        ("localhost", "localhost", {}, "ANSWERED"),
        ("localhost", "localhost", {"authority": trustme.CA()}, "CERTIFICATE_AUTHORITY"),
        ("localhost", "localhost", {"not_after": NOW - DAY}, "CERTIFICATE_EXPIRED"),
        ("localhost", "localhost", {"not_before": NOW + DAY}, "CERTIFICATE"),
        ("localhost", "other.example", {}, "CERTIFICATE_NAME"),
        ("127.0.0.1", "127.0.0.1", {}, "ANSWERED"),
        ("127.0.0.1", "localhost", {}, "CERTIFICATE_NAME"),
        ("::1", "::1", {}, "ANSWERED"),
    ],
)
async def test_a_certificate_that_does_not_verify_names_the_cause(
    host: str, name: str, options: dict[str, Any], kind: str
) -> None:
    """The authority, the time, and the name or IP address in the URL have different reasons."""
    context = server_context(name, **options)
    async with target(answers(200), host=host, tls=context) as gateway:
        found = await probed(str(httpx.URL(scheme="https", host=host, port=gateway.port)))
    assert found.reason.kind is ReasonKind[kind]


@pytest.mark.parametrize("name", ["gw.example", "gw.example."])
async def test_a_final_dot_is_for_dns_alone(network: SimpleNamespace, name: str) -> None:
    """SNI and the certificate have the name without it (RFC 6066); the look-up has it."""
    shown: list[str] = []
    tls = server_context("gw.example")
    tls.sni_callback = lambda _, shown_name, __: shown.append(shown_name)
    network.addresses = ["127.0.0.1"]
    async with target(answers(200), tls=tls) as gateway:
        assert await probed(f"https://{name}:{gateway.port}/") == READY
    assert (network.look_ups, shown) == ([name], ["gw.example"])


VERSIONS = (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3)
PLAIN_TEXT = b"HTTP/1.1 400 Bad\r\n\r\n"
BAD_RECORD = b"\x17\x03\x03\x00\x20" + bytes(32)


@pytest.mark.parametrize(
    ("version", "data"),
    [(None, b""), *itertools.product((None, *VERSIONS), (PLAIN_TEXT, BAD_RECORD))],
)
async def test_tls_that_fails_is_a_value(version: ssl.TLSVersion | None, data: bytes) -> None:
    """Trap 30: in the handshake and after it, nonsense has a reason, and is not a bug of ghealth.

    So has a target without TLS that closes the connection.
    """

    async def breaks(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(4096)
        os.write(writer.get_extra_info("socket").fileno(), data)

    tls = server_context("localhost", version=version) if version else None
    async with target(breaks, tls=tls, reads=False) as gateway:
        found = await probed(f"https://localhost:{gateway.port}/")
    assert found.reason.kind is ReasonKind.TLS


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_missing_client_certificate_is_a_value(version: ssl.TLSVersion) -> None:
    """With TLS 1.3 the alert comes after the handshake, and a reset may overtake it."""
    tls = server_context("localhost", version=version)
    tls.verify_mode = ssl.CERT_REQUIRED
    async with target(answers(200), tls=tls) as gateway:
        for _ in range(10):
            found = await probed(f"https://localhost:{gateway.port}/")
            assert found.reason.kind in (ReasonKind.TLS, ReasonKind.TLS_RESET)


async def test_a_reset_instead_of_a_handshake_is_a_value() -> None:
    """Its reason names TLS."""
    async with target(resets, reads=False) as gateway:
        found = await probed(f"https://localhost:{gateway.port}/")
    assert found.reason.kind is ReasonKind.TLS_RESET


async def test_a_plain_target_needs_no_tls(
    monkeypatch: pytest.MonkeyPatch, gateway: Target
) -> None:
    """OpenSSL without ciphers can create no SSL context: a probe by http works all the same."""
    monkeypatch.setattr(ssl, "SSLContext", None)
    monkeypatch.setattr(ssl, "create_default_context", None)
    assert await probed(gateway.url) == READY


# ---- several probes, and time --------------------------------------------------------------------

OTHER_READY = ProbeResult(ready=True, reason=answered(204))


@pytest.mark.parametrize(
    ("results", "ready", "reason"),
    [
        ((SICK, READY, SICK), False, "probe 1 of 3: gateway answered 503"),
        ((READY, SICK, READY), False, "probe 2 of 3: gateway answered 503"),
        ((READY, READY, OTHER_READY), True, "gateway answered 204"),
    ],
)
async def test_several_probes_are_ready_if_all_are(results: Any, ready: bool, reason: str) -> None:
    """The reason is that of the first probe that is not ready, otherwise of the last one."""
    found = await AllOf([FakeProbe(result) for result in results])()
    assert (found.ready, str(found.reason)) == (ready, reason)


@in_virtual_time
async def test_a_bug_in_one_of_several_probes_is_no_cancellation() -> None:
    """It is raised, ends the other probes, and does not count as a cancellation of the task."""
    other = hanging()
    with pytest.raises(ZeroDivisionError):
        await AllOf([other, FakeProbe(ZeroDivisionError())])()
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    await asyncio.sleep(0)
    assert other.under_way == 0


@in_virtual_time
async def test_several_probes_share_one_timeout() -> None:
    """Probes run side by side; one that hangs is named, ended, and costs the timeout once."""
    loop = asyncio.get_running_loop()
    slow = hanging()
    probes = [WithTimeout(one, 3, clock=loop.time) for one in (FakeProbe(), slow, hanging())]
    found = await AllOf(probes)()
    assert loop.time() == pytest.approx(3)
    assert str(found.reason) == "probe 2 of 3: no answer within 3 s"
    assert slow.under_way == 0


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

import asyncio
import contextlib
import gzip
import ssl
from itertools import islice
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from grpc_health.v1 import health_pb2

from ghealth.check import call, http2
from ghealth.check.addresses import Server
from ghealth.check.call import Request, check, watch
from ghealth.check.report import ExitCode, Report
from ghealth.check.tls import client_context
from ghealth.health import CHECK_PATH, DEADLINE, ReasonKind
from tests.support import processes
from tests.support.peers import Behaviour, Target, is_silent, nobody, says, target
from tests.support.wire import framed, gzipped
from tests.unit.check import servers
from tests.unit.check.servers import OK, Answer, Peer, responds, sends, status

TLS_FAILED = ReasonKind.TLS.template
UNVERIFIED, VERIFYING = client_context(verify=False), client_context()
servers.AUTHORITY.configure_trust(VERIFYING)
OWN = servers.server_context()
HEALTH, ZLIB = "grpc.health.v1.Health", "Error -3 while decompressing data"
HEALTHY = framed(b"\x08\x01")
SERVING, NOT_SERVING = status(1), status(2)
DRAINING = status(2, ghealth_reason="draining")


def request(port: int, *, host: str = "localhost", **fields: Any) -> Request:
    """Make a check of a server on this machine."""
    times = dict.fromkeys(("connect_timeout", "rpc_timeout"), servers.TIMEOUT)
    usual: dict[str, Any] = times | {"server": Server.parse(f"{host}:{port}")}
    return Request(**{"user_agent": "test"} | usual | fields)


async def checked(peer: Behaviour, server: ssl.SSLContext | None = None, **fields: Any) -> Report:
    """Check a server that runs in this thread."""
    async with target(peer, reads=False, tls=server) as listening:
        return await asyncio.to_thread(check, request(listening.port, **fields))


HINTS = {":status": "103", "link": "</a>; rel=preload"}
"""Comes before the answer (RFC 9110, 15.2)."""
PAGE_OF_A_PROXY = sends(
    {":status": "502", "content-type": "text/html"}, b"<html>Bad Gateway</html>"
)
FAILED, UNHEALTHY = "health rpc failed: ", "service unhealthy (responded with"


@pytest.mark.parametrize(
    ("answer", "exit_code", "text"),
    [
        (SERVING, 0, "status: SERVING"),
        (responds(HEALTHY[:3], HEALTHY[3:6], HEALTHY[6:]), 0, "status: SERVING"),
        (responds(gzipped(b"\x08\x01")), 0, "status: SERVING"),
        (responds(framed(b"\x08\x02\x08\x81\x00")), 0, "status: SERVING"),
        (sends(HINTS, OK, HEALTHY, {"grpc-status": "0"}), 0, "status: SERVING"),
        (DRAINING, 4, "NOT_SERVING: draining"),
        (NOT_SERVING, 4, f'{UNHEALTHY} "NOT_SERVING")'),
        (responds(framed(b"")), 4, f'{UNHEALTHY} "UNKNOWN")'),
        (status(99), 4, f'{UNHEALTHY} "99")'),
        (responds(code="14", grpc_message="x", ghealth_reason="a"), 4, "UNAVAILABLE: a"),
        (responds(code="14", grpc_message="x: 503"), 3, f"{FAILED}UNAVAILABLE: x: 503"),
        (responds(code="10", grpc_message="be%0Acause"), 3, f"{FAILED}ABORTED: be?cause"),
        (responds(code="13", grpc_message="%C3%A9%1B"), 3, f"{FAILED}INTERNAL: é?"),
        (responds(code="99"), 3, f"{FAILED}99"),
        (
            responds(code="5", ghealth_reason="a"),
            3,
            f'{FAILED}NOT_FOUND: the server has no service "s"',
        ),
        (responds(code="12"), 3, f"{FAILED}UNIMPLEMENTED: this server does not implement {HEALTH}"),
        (PAGE_OF_A_PROXY, 3, f"{FAILED}UNKNOWN: HTTP status 502 without a gRPC status"),
        (responds(), 3, f"{FAILED}INTERNAL: 0 messages instead of one"),
        (responds(HEALTHY * 2), 3, f"{FAILED}INTERNAL: 2 messages instead of one"),
        (responds(b"\0\xff\xff\xff\xff"), 3, f"{FAILED}INTERNAL: malformed message"),
        (responds(framed(b"\xff")), 3, f"{FAILED}INTERNAL: malformed message"),
        (responds(framed(b"\x10\x01")), 3, f"{FAILED}INTERNAL: malformed message"),
        (responds(b"\1\0\0\0\1\x1f"), 3, f"{FAILED}INTERNAL: malformed message"),
        (responds(b"\1\0\0\0\3abc"), 3, f"{FAILED}INTERNAL: {ZLIB}: incorrect header check"),
        (servers.resets_the_request, 3, f"{FAILED}UNAVAILABLE: request reset by the server"),
    ],
)
async def test_an_answer_becomes_an_exit_code_and_a_line(
    answer: Answer, exit_code: int, text: str
) -> None:
    """Exit codes are grpc-health-probe's, but UNAVAILABLE with ghealth's reason is 4."""
    report = await checked(Peer(answer), service="s")
    assert (report.exit_code, report.text) == (exit_code, text)


@pytest.mark.parametrize(("timeout", "longer"), [(1.0, "5s"), (4.5, "9s")])
async def test_a_deadline_that_was_too_short_has_a_hint(timeout: float, longer: str) -> None:
    """The reason that a longer timeout would avoid names one."""
    reason = str(DEADLINE.reason)
    report = await checked(Peer(status(2, ghealth_reason=reason)), rpc_timeout=timeout)
    hint = f"no answer before the deadline of {timeout:g} s; try --rpc-timeout {longer}"
    assert (report.text, report.keys["reason"]) == (f"NOT_SERVING: {hint}", reason)


async def test_the_keys_of_the_json_output() -> None:
    """The keys are documented and stable."""
    report = await checked(Peer(responds(code="14", ghealth_reason="draining")), service="s")
    asked = {"address": report.keys["address"], "service": "s"}
    answer = {"status": None, "code": 14, "code_name": "UNAVAILABLE", "reason": "draining"}
    result = {"exit_code": 4, "conclusion": "not serving", "text": "UNAVAILABLE: draining"}
    assert report.keys == asked | answer | result


async def test_a_connection_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server may come within the timeout of the connection."""
    connect = http2.connect

    def refused(*_: Any, **__: Any) -> None:
        monkeypatch.setattr(http2, "connect", connect)
        raise http2.Http2Error("connection refused")

    monkeypatch.setattr(call, "RECONNECT_INTERVAL", 0.01)
    monkeypatch.setattr(http2, "connect", refused)
    assert (await checked(Peer(SERVING))).exit_code is ExitCode.SERVING


def test_after_the_timeout_the_last_cause_is_named() -> None:
    """A server that is not there is no connection."""
    with nobody() as port:
        report = check(request(port, connect_timeout=0.2))
    assert (report.exit_code, report.keys["code"]) == (ExitCode.NO_CONNECTION, None)
    text = f'failed to connect to "localhost:{port}" within 0.2 s: connection refused'
    assert report.text == text


@pytest.mark.parametrize("tls", [None, UNVERIFIED])
async def test_a_server_that_accepts_and_is_silent_is_no_connection(tls: Any) -> None:
    """A connection is one once the server speaks HTTP/2."""
    report = await checked(is_silent, connect_timeout=0.1, tls=tls)
    assert report.exit_code is ExitCode.NO_CONNECTION
    assert report.text == f'failed to connect to "{report.keys["address"]}" within 0.1 s'


async def test_a_server_that_hangs_is_an_rpc_that_failed() -> None:
    """The timeout of the answer is not the connection's."""
    report = await checked(Peer(lambda _: None), rpc_timeout=0.2)
    assert report.exit_code is ExitCode.RPC_FAILED
    assert report.text == "health rpc failed: DEADLINE_EXCEEDED: no answer within 0.2 s"


async def test_headers_user_agent_and_compression_reach_the_server() -> None:
    """The flags of grpc-health-probe for the request do what they do there."""
    peer, steps, service = Peer(SERVING), list[str](), "é" * 100
    headers = [("X-One", "1"), ("two-bin", "é"), ("te", "ignored"), (":path", "ignored")]
    async with target(peer, reads=False) as listening:
        port = listening.port
        asked = request(port, headers=headers, gzip=True, user_agent="me", service=service)
        await asyncio.to_thread(check, asked, steps.append)
    assert steps == [f"connecting to localhost:{port}", "connected", "answered"]  # the flag -v
    assert peer.body[:5] == b"\1" + (len(peer.body) - 5).to_bytes(4, "big")
    message = health_pb2.HealthCheckRequest.FromString(gzip.decompress(peer.body[5:]))
    assert message.service == service
    received = dict(peer.headers)
    assert len(received) == len(peer.headers)
    assert (received[b":path"], received[b"te"]) == (CHECK_PATH.encode(), b"trailers")
    assert (received[b"x-one"], received[b"two-bin"]) == (b"1", b"w6k=")
    # ghealth sends the message to clients with a word grpc-… (GHEALTH_STATUS_CALLERS).
    assert (received[b"grpc-encoding"], received[b"user-agent"]) == (b"gzip", b"me grpc-h2")


@pytest.mark.parametrize(
    ("fields", "cause"),
    [
        ({"headers": [("a b", "c")]}, "INTERNAL: 'a b' is not the name of a gRPC header"),
        ({"headers": [("", "c")]}, "INTERNAL: '' is not the name of a gRPC header"),
        ({"headers": [("a", "é")]}, "INTERNAL: the value of header a is not printable ASCII"),
        ({"service": "\udcff"}, "INTERNAL: the service's name is not UTF-8"),
        # The limits of the server's settings refuse it.
        ({"service": "s" * 20_000}, "UNAVAILABLE: the server does not accept the request"),
    ],
)
async def test_what_grpc_cannot_send_is_an_rpc_that_failed(
    fields: dict[str, Any], cause: str
) -> None:
    """grpc-health-probe finds it after connecting, too."""
    report = await checked(Peer(SERVING), **fields)
    assert report.exit_code is ExitCode.RPC_FAILED
    assert report.text == f"health rpc failed: {cause}"


@pytest.mark.parametrize(
    ("fields", "header"),
    [
        ({"user_agent": "\udcff"}, (b"user-agent", b"\xff grpc-h2")),
        ({"rpc_timeout": 9e9, "connect_timeout": 9e9}, (b"grpc-timeout", b"99999999m")),
    ],
)
async def test_values_at_the_limits_are_sent(
    fields: dict[str, Any], header: tuple[bytes, bytes]
) -> None:
    """An argument may have bytes that are not UTF-8; a `grpc-timeout` has at most eight digits."""
    peer = Peer(SERVING)
    await checked(peer, **fields)
    assert header in peer.headers


async def test_a_unix_socket(tmp_path: Path) -> None:
    """Any path of a socket works; for TLS its host is localhost."""
    accept, path = Target(Peer(SERVING), reads=False).accept, f"{tmp_path}/a b%20"
    with contextlib.closing(await asyncio.start_unix_server(accept, path, ssl=OWN)):
        asked = request(0, server=Server.parse(f"unix:{path}"), tls=VERIFYING)
        report = await asyncio.to_thread(check, asked)
    assert report.exit_code is ExitCode.SERVING


@pytest.mark.parametrize(
    ("peer", "server", "name", "reason"),
    [
        (
            is_silent,
            servers.server_context(expired=True),
            "",
            f"{TLS_FAILED}: certificate has expired",
        ),
        (is_silent, OWN, "other", f"{TLS_FAILED}: Hostname mismatch, certificate is not valid for"),
        (is_silent, OWN, ".a", f"{TLS_FAILED}: '.a' is not a host name"),
        (is_silent, OWN, "é", f"{TLS_FAILED}: 'é' is not a host name"),
        (
            is_silent,
            servers.server_context(alpn=False),
            "",
            "the server does not offer HTTP/2 over TLS",
        ),
        (says(b"HTTP/1.1 400\r\n\r\n"), None, "", f"{TLS_FAILED}: wrong version number"),
        (says(b""), None, "", f"{TLS_FAILED}: "),
        # With TLS 1.3 the server refuses a missing certificate only after the handshake.
        (is_silent, servers.server_context(clients=True), "", (TLS_FAILED, "connection ")),
    ],
)
async def test_tls_that_fails_is_no_connection(
    peer: Any, server: Any, name: str, reason: Any
) -> None:
    """A handshake must succeed and agree on HTTP/2, as gRPC requires; the cause is named."""
    report = await checked(peer, server, tls=VERIFYING, server_name=name, connect_timeout=0.5)
    assert report.exit_code is ExitCode.NO_CONNECTION
    assert str(report.keys["reason"]).startswith(reason)


async def test_a_final_dot_is_no_part_of_the_servers_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """SNI and the certificate have the name without it (RFC 6066, 3); DNS has it."""
    names, looked_up, addresses = list[Any](), list[bytes](), http2._addresses

    def look_up(name: bytes, port: int, flags: int = 0) -> list[Any]:
        looked_up.append(name)
        return addresses(b"127.0.0.1", port, flags)

    monkeypatch.setattr(http2, "_addresses", look_up)
    context = servers.server_context()
    context.sni_callback = lambda _socket, name, _context: names.append(name)
    report = await checked(Peer(SERVING), server=context, host="localhost.", tls=VERIFYING)
    assert report.exit_code is ExitCode.SERVING
    assert (names, looked_up) == (["localhost"], [b"localhost."])


LOST = {"code": "14", "ghealth_reason": "draining"}


@pytest.mark.parametrize(
    ("answers", "texts"),
    [
        (
            [responds(HEALTHY, **LOST), responds(**LOST)],
            ["status: SERVING", "UNAVAILABLE: draining"],
        ),
        ([responds(HEALTHY * 2), SERVING, DRAINING], ["status: SERVING", "NOT_SERVING: draining"]),
        ([NOT_SERVING, DRAINING, SERVING], ["NOT_SERVING: draining", "status: SERVING"]),
        ([NOT_SERVING, SERVING], [f'{UNHEALTHY} "NOT_SERVING")']),
        ([responds()], [f"{FAILED}INTERNAL: 0 messages instead of one"]),
        ([responds(framed(b"\xff"))], [f"{FAILED}INTERNAL: malformed message"]),
        ([responds(HEALTHY, code="99")], ["status: SERVING", f"{FAILED}99"]),
    ],
)
async def test_what_a_watch_reports(answers: list[Answer], texts: list[str]) -> None:
    """Changes only, over all connections, with the reason of a Check that has the same status."""
    async with target(Peer(*answers), reads=False) as peer:
        reports = islice(watch(request(peer.port), pause=lambda: None), len(texts))
        assert [report.text for report in await asyncio.to_thread(list, reports)] == texts


def test_a_watch_of_a_server_that_is_not_there() -> None:
    """A watch reports a lost connection once, and continues."""
    pause, reports = Mock(side_effect=[None, InterruptedError]), list[Report]()
    with nobody() as port, contextlib.suppress(InterruptedError):
        reports.extend(watch(request(port, connect_timeout=0.2), pause=pause))
    assert pause.call_count == 2
    assert [report.exit_code for report in reports] == [ExitCode.NO_CONNECTION]


@pytest.mark.parametrize("flags", [[], ["--tls"], ["--as=alb"], ["--output=json"]])
def test_a_check_loads_no_library_of_the_server(flags: list[str]) -> None:
    """It runs inside the server's memory limit: gRPC and pydantic alone take 40 MiB."""
    with nobody() as port:
        settings = (f"GHEALTH_{name}=127.0.0.1:{port}" for name in ("LISTEN", "TLS_LISTEN"))
        prefix = ("env", "--ignore-environment", "PYTHONPROFILEIMPORTTIME=1", *settings)
        done = processes.run("check", "-connect-timeout=10ms", *flags, prefix=prefix)
    modules = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "h2.connection" in modules
    assert not {"grpc", "google", "google.protobuf", "pydantic", "httpx", "asyncio"} & modules
    assert ("ssl" in modules) == ("--tls" in flags)

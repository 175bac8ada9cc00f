import asyncio
import contextlib
import gzip
import ssl
from itertools import islice
from pathlib import Path
from typing import Any

import h2.connection
import pytest
from grpc_health.v1 import health_pb2

from ghealth.check import call, http2
from ghealth.check.addresses import Server
from ghealth.check.call import check, watch
from ghealth.check.report import ExitCode, Report
from ghealth.check.tls import client_context
from ghealth.health import CHECK_PATH, DEADLINE, ReasonKind
from tests.support import processes
from tests.support.peers import Behaviour, Target, is_silent, nobody, says, target
from tests.support.wire import framed, gzipped
from tests.unit.check.servers import (
    Answers,
    Http2Peer,
    authority,
    request,
    resets_the_request,
    responds,
    server_context,
    status,
)

TLS_FAILED = ReasonKind.TLS.template
UNVERIFIED, VERIFYING = client_context(verify=False), client_context()
authority().configure_trust(VERIFYING)
OWN, EXPIRED, MTLS = server_context(), server_context(expired=True), server_context(clients=True)
HEALTH, ZLIB = "grpc.health.v1.Health", "Error -3 while decompressing data"
HEALTHY = framed(b"\x08\x01")
SERVING, NOT_SERVING = status(1), status(2)
DRAINING = status(2, ghealth_reason="draining")


async def checked(
    peer: Behaviour, *, server: ssl.SSLContext | None = None, **fields: Any
) -> Report:
    """Check a server that runs in this thread."""
    async with target(peer, reads=False, tls=server) as listening:
        return await asyncio.to_thread(check, request(listening.port, **fields))


async def watched(*answers: Answers, count: int) -> list[str]:
    """Watch a server, and return the texts of the first reports."""
    async with target(Http2Peer(*answers), reads=False) as peer:
        reports = islice(watch(request(peer.port), pause=lambda: None), count)
        return await asyncio.to_thread(lambda: [report.text for report in reports])


def early_hints(connection: h2.connection.H2Connection) -> None:
    """Send a 103 first, which is not the answer (RFC 9110, 15.2)."""
    connection.send_headers(1, [(":status", "103"), ("link", "</a>; rel=preload")])
    SERVING(connection)


def page_of_a_proxy(connection: h2.connection.H2Connection) -> None:
    connection.send_headers(1, [(":status", "502"), ("content-type", "text/html")])
    connection.send_data(1, b"<html>Bad Gateway</html>", end_stream=True)


@pytest.mark.parametrize(
    ("answers", "exit_code", "text"),
    [
        (SERVING, 0, "status: SERVING"),
        (responds(HEALTHY[:3], HEALTHY[3:6], HEALTHY[6:]), 0, "status: SERVING"),
        (responds(gzipped(b"\x08\x01")), 0, "status: SERVING"),
        (responds(framed(b"\x08\x02\x08\x81\x00")), 0, "status: SERVING"),
        (early_hints, 0, "status: SERVING"),
        (DRAINING, 4, "NOT_SERVING: draining"),
        (NOT_SERVING, 4, 'service unhealthy (responded with "NOT_SERVING")'),
        (responds(framed(b"")), 4, 'service unhealthy (responded with "UNKNOWN")'),
        (status(99), 4, 'service unhealthy (responded with "99")'),
        (responds(code="14", grpc_message="x", ghealth_reason="a"), 4, "UNAVAILABLE: a"),
    ],
)
async def test_a_health_status_becomes_an_exit_code(
    answers: Answers, exit_code: int, text: str
) -> None:
    """Exit codes are grpc-health-probe's, but UNAVAILABLE with ghealth's reason is 4."""
    report = await checked(Http2Peer(answers))
    assert (report.exit_code, report.text) == (exit_code, text)


@pytest.mark.parametrize(
    ("answers", "cause"),
    [
        (responds(code="14", grpc_message="answered 503"), "UNAVAILABLE: answered 503"),
        (responds(code="10", grpc_message="be%0Acause"), "ABORTED: be?cause"),
        (responds(code="13", grpc_message="%C3%A9%1B"), "INTERNAL: é?"),
        (responds(code="99"), "99"),
        (responds(code="5", ghealth_reason="a"), 'NOT_FOUND: the server has no service "some"'),
        (responds(code="12"), f"UNIMPLEMENTED: this server does not implement {HEALTH}"),
        (page_of_a_proxy, "UNKNOWN: HTTP status 502 without a gRPC status"),
        (responds(), "INTERNAL: 0 messages instead of one"),
        (responds(HEALTHY * 2), "INTERNAL: 2 messages instead of one"),
        (responds(b"\0\xff\xff\xff\xff"), "INTERNAL: malformed message"),
        (responds(framed(b"\xff")), "INTERNAL: malformed message"),
        (responds(framed(b"\x10\x01")), "INTERNAL: malformed message"),
        (responds(b"\1\0\0\0\1\x1f"), "INTERNAL: malformed message"),
        (responds(b"\1\0\0\0\3abc"), f"INTERNAL: {ZLIB}: incorrect header check"),
        (resets_the_request, "UNAVAILABLE: request reset by the server"),
    ],
)
async def test_any_other_answer_is_an_rpc_that_failed(answers: Answers, cause: str) -> None:
    """An answer that is not one message with a status has exit code 3 and a cause, in one line."""
    report = await checked(Http2Peer(answers), service="some")
    assert report.exit_code is ExitCode.RPC_FAILED
    assert report.text == f"health rpc failed: {cause}"


@pytest.mark.parametrize(("timeout", "longer"), [(1.0, "5s"), (4.5, "9s")])
async def test_a_deadline_that_was_too_short_has_a_hint(timeout: float, longer: str) -> None:
    """The reason that a longer timeout would avoid names one."""
    reason = str(DEADLINE.reason)
    report = await checked(Http2Peer(status(2, ghealth_reason=reason)), rpc_timeout=timeout)
    hint = f"no answer before the deadline of {timeout:g} s; try --rpc-timeout {longer}"
    assert (report.text, report.keys["reason"]) == (f"NOT_SERVING: {hint}", reason)


async def test_the_keys_of_the_json_output() -> None:
    """The keys are documented and stable."""
    report = await checked(Http2Peer(responds(code="14", ghealth_reason="draining")), service="s")
    assert report.keys == {
        "exit_code": 4,
        "conclusion": "not serving",
        "address": report.keys["address"],
        "service": "s",
        "status": None,
        "code": 14,
        "code_name": "UNAVAILABLE",
        "reason": "draining",
        "text": "UNAVAILABLE: draining",
    }


async def test_a_connection_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server may come within the timeout of the connection."""
    connect = http2.connect

    def refused(*_: Any, **__: Any) -> None:
        monkeypatch.setattr(http2, "connect", connect)
        raise http2.Http2Error("connection refused")

    monkeypatch.setattr(call, "RECONNECT_INTERVAL", 0.01)
    monkeypatch.setattr(http2, "connect", refused)
    assert (await checked(Http2Peer(SERVING))).exit_code is ExitCode.SERVING


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
    report = await checked(Http2Peer(lambda _: None), rpc_timeout=0.2)
    assert report.exit_code is ExitCode.RPC_FAILED
    assert report.text == "health rpc failed: DEADLINE_EXCEEDED: no answer within 0.2 s"


async def test_headers_user_agent_and_compression_reach_the_server() -> None:
    """The flags of grpc-health-probe for the request do what they do there."""
    peer, steps, service = Http2Peer(SERVING), list[str](), "é" * 100
    headers = [("X-One", "1"), ("two-bin", "é"), ("te", "ignored"), (":path", "ignored")]
    async with target(peer, reads=False) as listening:
        port = listening.port
        asked = request(port, headers=headers, gzip=True, user_agent="me", service=service)
        await asyncio.to_thread(check, asked, steps.append)
    assert steps == [f"connecting to localhost:{port}", "connected", "answered"]  # the flag -v
    message = gzip.decompress(peer.body[5:])
    assert peer.body[:5] == b"\1" + (len(peer.body) - 5).to_bytes(4, "big")
    assert health_pb2.HealthCheckRequest.FromString(message).service == service
    received = dict(peer.headers)
    assert len(received) == len(peer.headers)
    assert (received[b":path"], received[b"te"]) == (CHECK_PATH.encode(), b"trailers")
    assert (received[b"x-one"], received[b"two-bin"]) == (b"1", b"w6k=")
    assert received[b"grpc-encoding"] == b"gzip"
    # ghealth sends the message to clients with such a word (GHEALTH_STATUS_CALLERS).
    assert received[b"user-agent"] == b"me grpc-h2"


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
    report = await checked(Http2Peer(SERVING), **fields)
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
    peer = Http2Peer(SERVING)
    await checked(peer, **fields)
    assert header in peer.headers


@pytest.mark.parametrize("by_tls", [False, True])
async def test_a_unix_socket(tmp_path: Path, by_tls: bool) -> None:
    """Any path of a socket works, with and without TLS, where the host is localhost."""
    own, tls = (OWN, VERIFYING) if by_tls else (None, None)
    accept, path = Target(Http2Peer(SERVING), reads=False).accept, f"{tmp_path}/a b%20"
    with contextlib.closing(await asyncio.start_unix_server(accept, path, ssl=own)):
        asked = request(0, server=Server.parse(f"unix:{path}"), tls=tls)
        report = await asyncio.to_thread(check, asked)
    assert report.exit_code is ExitCode.SERVING


PAIR = ("ca_cert", "client_cert", "client_key")


@pytest.mark.parametrize(
    ("server", "verify", "files"),
    [
        (OWN, True, ["ca_cert"]),
        (EXPIRED, False, []),
        (MTLS, True, PAIR),
        (MTLS, False, PAIR),
    ],
)
async def test_tls(
    pem: dict[str, str], server: ssl.SSLContext, verify: bool, files: list[str]
) -> None:
    """The flags work together: authorities or no verification, with a client certificate too."""
    tls = client_context(verify=verify, **{name: pem[name] for name in files})
    report = await checked(Http2Peer(SERVING), server=server, tls=tls)
    assert report.exit_code is ExitCode.SERVING


@pytest.mark.parametrize(
    ("peer", "server", "name", "reason"),
    [
        (is_silent, EXPIRED, "", f"{TLS_FAILED}: certificate has expired"),
        (is_silent, OWN, "other", f"{TLS_FAILED}: Hostname mismatch, certificate is not valid for"),
        (is_silent, OWN, ".a", f"{TLS_FAILED}: '.a' is not a host name"),
        (is_silent, OWN, "é", f"{TLS_FAILED}: 'é' is not a host name"),
        (is_silent, server_context(alpn=False), "", "the server does not offer HTTP/2 over TLS"),
        (
            says(b"HTTP/1.1 400 Bad Request\r\n\r\n"),
            None,
            "",
            f"{TLS_FAILED}: wrong version number",
        ),
        (says(b""), None, "", f"{TLS_FAILED}: "),
        # With TLS 1.3 the server refuses a missing certificate only after the handshake.
        (is_silent, MTLS, "", (TLS_FAILED, "connection ")),
    ],
)
async def test_tls_that_fails_is_no_connection(
    peer: Any, server: Any, name: str, reason: Any
) -> None:
    """A handshake must succeed and agree on HTTP/2, as gRPC requires; the cause is named."""
    options = {"tls": VERIFYING, "server_name": name, "connect_timeout": 0.5}
    report = await checked(peer, server=server, **options)
    assert report.exit_code is ExitCode.NO_CONNECTION
    assert str(report.keys["reason"]).startswith(reason)


async def test_a_final_dot_is_no_part_of_the_servers_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """SNI and the certificate have the name without it (RFC 6066, 3); DNS has it."""
    names, looked_up, addresses = list[Any](), list[bytes](), http2._addresses

    def look_up(name: bytes, port: int, flags: int = 0) -> list[Any]:
        looked_up.append(name)
        return addresses(b"127.0.0.1", port, flags)

    monkeypatch.setattr(http2, "_addresses", look_up)
    context = server_context()
    context.sni_callback = lambda _socket, name, _context: names.append(name)
    async with target(Http2Peer(SERVING), reads=False, tls=context) as peer:
        for host, server_name in (("localhost.", ""), ("127.0.0.1", "localhost.")):
            server = Server.parse(f"{host}:{peer.port}")
            asked = request(0, server=server, server_name=server_name, tls=VERIFYING)
            assert (await asyncio.to_thread(check, asked)).exit_code is ExitCode.SERVING
    assert names == ["localhost", "localhost"]
    assert looked_up[0] == b"localhost."


async def test_a_watch_reports_changes_only_and_connects_again() -> None:
    """A watch reports each change, the loss of the server included, with the reason of a Check."""
    lost = responds(code="14", ghealth_reason="draining")
    serving_then_lost = responds(HEALTHY, code="14", ghealth_reason="draining")
    answers = (serving_then_lost, lost, responds(HEALTHY * 2), NOT_SERVING, DRAINING, SERVING)
    assert await watched(*answers, count=5) == [
        "status: SERVING",
        "UNAVAILABLE: draining",
        "status: SERVING",
        "NOT_SERVING: draining",
        "status: SERVING",
    ]


async def test_a_watch_whose_check_has_another_status() -> None:
    """The reason of another status is not this one's."""
    texts = await watched(NOT_SERVING, SERVING, count=1)
    assert texts == ['service unhealthy (responded with "NOT_SERVING")']


@pytest.mark.parametrize(
    ("answers", "texts"),
    [
        (responds(), ["health rpc failed: INTERNAL: 0 messages instead of one"]),
        (responds(framed(b"\xff")), ["health rpc failed: INTERNAL: malformed message"]),
        (responds(HEALTHY, code="99"), ["status: SERVING", "health rpc failed: 99"]),
    ],
)
async def test_a_watch_that_ends_badly_says_so(answers: Answers, texts: list[str]) -> None:
    """A Watch that ends without a message, or with an error, is an RPC that failed."""
    assert await watched(answers, count=len(texts)) == texts


def test_a_watch_of_a_server_that_is_not_there() -> None:
    """A watch reports a lost connection once, and continues."""
    pauses, reports = iter([None]), list[Report]()

    def pause() -> None:
        if next(pauses, "second") == "second":
            raise InterruptedError

    with nobody() as port, contextlib.suppress(InterruptedError):
        reports.extend(watch(request(port, connect_timeout=0.2), pause=pause))
    assert list(pauses) == []
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

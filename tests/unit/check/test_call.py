import asyncio
import contextlib
import gzip
import ssl
import subprocess
import sys
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
from tests.support.peers import Behaviour, Target, is_silent, nobody, says, target
from tests.unit.check.servers import (
    Answers,
    Http2Peer,
    framed,
    goaway_then,
    request,
    resets_the_request,
    responds,
    server_context,
    status,
    trailers,
)

TLS_FAILED = ReasonKind.TLS.template
UNVERIFIED = client_context(verify=False)
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
        (responds(framed(gzip.compress(b"\x08\x01"), compressed=True)), 0, "status: SERVING"),
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
        (
            trailers("200", ("grpc-status", "5"), ("ghealth-reason", "unknown service")),
            'NOT_FOUND: the server has no service "some"',
        ),
        (
            responds(code="12"),
            "UNIMPLEMENTED: this server does not implement grpc.health.v1.Health",
        ),
        (page_of_a_proxy, "UNKNOWN: HTTP status 502 without a gRPC status"),
        (responds(), "INTERNAL: 0 messages instead of one"),
        (responds(HEALTHY * 2), "INTERNAL: 2 messages instead of one"),
        (responds(b"\0\xff\xff\xff\xff"), "INTERNAL: malformed message"),
        (responds(framed(b"\xff")), "INTERNAL: malformed message"),
        (responds(framed(b"\x10\x01")), "INTERNAL: malformed message"),
        (responds(framed(b"\x1f", compressed=True)), "INTERNAL: malformed message"),
        (
            responds(framed(b"abc", compressed=True)),
            "INTERNAL: Error -3 while decompressing data: incorrect header check",
        ),
        (resets_the_request, "UNAVAILABLE: request reset by the server"),
        (goaway_then(0), "UNAVAILABLE: connection closed without an answer"),
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
    assert peer.body == framed(peer.body[5:], compressed=True)
    assert health_pb2.HealthCheckRequest.FromString(message).service == service
    received = dict(peer.headers)
    assert len(received) == len(peer.headers)
    assert (received[b":path"], received[b"te"]) == (CHECK_PATH.encode(), b"trailers")
    assert (received[b"x-one"], received[b"two-bin"]) == (b"1", b"w6k=")
    assert received[b"grpc-encoding"] == b"gzip"
    # ghealth sends the message to clients with such a word (GHEALTH_STATUS_CALLERS).
    assert received[b"user-agent"] == b"me grpc-h2"


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"headers": [("a b", "c")]}, "'a b' is not the name of a gRPC header"),
        ({"headers": [("", "c")]}, "'' is not the name of a gRPC header"),
        ({"headers": [("a", "é")]}, "the value of header a is not printable ASCII"),
        ({"service": "\udcff"}, "the service's name is not UTF-8"),
    ],
)
async def test_what_grpc_cannot_send_is_an_rpc_that_failed(
    fields: dict[str, Any], text: str
) -> None:
    """grpc-health-probe finds it after connecting, too."""
    report = await checked(Http2Peer(SERVING), **fields)
    assert report.exit_code is ExitCode.RPC_FAILED
    assert report.text == f"health rpc failed: INTERNAL: {text}"


async def test_a_user_agent_may_have_bytes_that_are_not_utf_8() -> None:
    """An argument of the command line is sent as it is."""
    peer = Http2Peer(SERVING)
    await checked(peer, user_agent="\udcff")
    assert (b"user-agent", b"\xff grpc-h2") in peer.headers


async def test_a_name_that_is_too_long_for_a_frame_is_no_bug() -> None:
    """The limits of the server's settings refuse it."""
    report = await checked(Http2Peer(SERVING), service="s" * 20_000)
    assert report.text == "health rpc failed: UNAVAILABLE: the server does not accept the request"


async def test_the_longest_timeout_that_grpc_can_express() -> None:
    """A `grpc-timeout` has at most eight digits, and a socket cannot wait for years."""
    peer = Http2Peer(SERVING)
    await checked(peer, connect_timeout=9e9, rpc_timeout=9e9)
    assert (b"grpc-timeout", b"99999999m") in peer.headers


@pytest.mark.parametrize("by_tls", [False, True])
async def test_a_unix_socket(tmp_path: Path, verifying: ssl.SSLContext, by_tls: bool) -> None:
    """Any path of a socket works, with and without TLS, where the host is localhost."""
    own, tls = (server_context(), verifying) if by_tls else (None, None)
    accept, path = Target(Http2Peer(SERVING), reads=False).accept, f"{tmp_path}/a b%20"
    with contextlib.closing(await asyncio.start_unix_server(accept, path, ssl=own)):
        asked = request(0, server=Server.parse(f"unix:{path}"), tls=tls)
        report = await asyncio.to_thread(check, asked)
    assert report.exit_code is ExitCode.SERVING


MTLS = ("ca_cert", "client_cert", "client_key")


@pytest.mark.parametrize(
    ("server", "verify", "files"),
    [
        (server_context(), True, ["ca_cert"]),
        (server_context(expired=True), False, []),
        (server_context(requires_client=True), True, MTLS),
        (server_context(requires_client=True), False, MTLS),
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
    ("expired", "server_name", "cause"),
    [
        (True, "", "certificate has expired"),
        (False, "other", "Hostname mismatch, certificate is not valid for 'other'."),
        (False, ".a", "'.a' is not a host name"),
        (False, "é", "'é' is not a host name"),
    ],
)
async def test_a_certificate_that_does_not_verify(
    verifying: ssl.SSLContext, expired: bool, server_name: str, cause: str
) -> None:
    """A certificate that does not verify means no connection, and the cause is named."""
    options = {"tls": verifying, "connect_timeout": 0.5, "server_name": server_name}
    report = await checked(is_silent, server=server_context(expired=expired), **options)
    assert report.exit_code is ExitCode.NO_CONNECTION
    assert report.keys["reason"] == f"{TLS_FAILED}: {cause}"


@pytest.mark.parametrize(
    ("behaviour", "context", "reasons"),
    [
        (
            is_silent,
            server_context(alpn=False),
            "the server does not offer HTTP/2 over TLS (ALPN)",
        ),
        (says(b"HTTP/1.1 400 Bad Request\r\n\r\n"), None, f"{TLS_FAILED}: wrong version number"),
        (says(b""), None, f"{TLS_FAILED}: "),
        # With TLS 1.3 the server refuses a missing certificate only after the handshake.
        (is_silent, server_context(requires_client=True), (TLS_FAILED, "connection ")),
    ],
)
async def test_tls_that_fails_is_no_connection(behaviour: Any, context: Any, reasons: Any) -> None:
    """A handshake must succeed, and agree on HTTP/2, as gRPC requires."""
    report = await checked(behaviour, server=context, tls=UNVERIFIED, connect_timeout=0.5)
    assert report.exit_code is ExitCode.NO_CONNECTION
    assert str(report.keys["reason"]).startswith(reasons)


async def test_a_final_dot_is_no_part_of_the_servers_name(
    verifying: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
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
            asked = request(0, server=server, server_name=server_name, tls=verifying)
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
    program = (
        "import sys\nfrom ghealth.cli import main\n"
        f"main(['check', '-connect-timeout=10ms', *{flags!r}])\n"
        "print(*sys.modules)"
    )
    with nobody() as port:
        done = subprocess.run(
            [sys.executable, "-c", program],
            env=dict.fromkeys(("GHEALTH_LISTEN", "GHEALTH_TLS_LISTEN"), f"127.0.0.1:{port}"),
            capture_output=True,
            text=True,
            check=True,
        )
    modules = set(done.stdout.splitlines()[-1].split())
    assert "h2.connection" in modules
    assert not {"grpc", "google", "google.protobuf", "pydantic", "httpx", "asyncio"} & modules
    assert ("ssl" in modules) == ("--tls" in flags)

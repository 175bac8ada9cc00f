import asyncio
import contextlib
import gzip
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import h2.connection
import pytest

from ghealth.check import call, http2
from ghealth.check.addresses import Server
from ghealth.check.call import Request, check, watch
from ghealth.check.report import ExitCode, Report
from ghealth.check.tls import client_context
from ghealth.health import ReasonKind
from tests.support.peers import is_silent, nobody, says, target
from tests.unit.check.servers import (
    NOT_SERVING,
    SERVING,
    Answers,
    Health,
    Http2Peer,
    credentials,
    files,
    framed,
    goaway_then,
    request,
    responds,
    server_context,
    serving,
)

ABORTED = grpc.StatusCode.ABORTED
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
NOT_IMPLEMENTED = "this server does not implement grpc.health.v1.Health"
DEADLINE = "no answer before the caller's deadline"
TLS_FAILED = ReasonKind.TLS.template
UNVERIFIED = client_context(verify=False)
HEALTHY = framed(b"\x08\x01")


async def checked(port: int, **fields: Any) -> Report:
    """Check a server that runs in this thread."""
    return await asyncio.to_thread(check, request(port, **fields))


async def checked_peer(answers: Answers, **fields: Any) -> Report:
    """Check a server of raw HTTP/2."""
    async with target(Http2Peer(answers).talk, reads=False) as peer:
        return await checked(peer.port, **fields)


Transport = tuple[grpc.ServerCredentials | None, dict[str, Any]]


@pytest.fixture(params=["plaintext", "gzip", "tls", "unverified", "mtls", "unverified mtls"])
def transport(request: pytest.FixtureRequest, tmp_path: Path) -> Transport:
    """The server's credentials, and the client's options."""
    paths = files(tmp_path)
    transports: dict[str, Transport] = {
        "plaintext": (None, {}),
        "gzip": (None, {"gzip": True}),
        "tls": (credentials(), {"tls": client_context(ca_cert=paths["ca_cert"])}),
        "unverified": (credentials(expired=True), {"tls": UNVERIFIED}),
        "mtls": (credentials(requires_client=True), {"tls": client_context(**paths)}),
        "unverified mtls": (
            credentials(requires_client=True),
            {"tls": client_context(verify=False, **paths)},
        ),
    }
    return transports[request.param]


@pytest.mark.parametrize(
    ("servicer", "exit_code", "text"),
    [
        (Health(SERVING), 0, "status: SERVING"),
        (Health(NOT_SERVING, reason="draining"), 4, "NOT_SERVING: draining"),
        (Health(NOT_SERVING), 4, 'service unhealthy (responded with "NOT_SERVING")'),
        (Health(0), 4, 'service unhealthy (responded with "UNKNOWN")'),
        (Health(99), 4, 'service unhealthy (responded with "99")'),
        (
            Health((UNAVAILABLE, "x"), reason="gateway answered 503"),
            4,
            "UNAVAILABLE: gateway answered 503",
        ),
        (
            Health((UNAVAILABLE, "gateway answered 503")),
            3,
            "health rpc failed: UNAVAILABLE: gateway answered 503",
        ),
        (Health((ABORTED, "be\ncause")), 3, "health rpc failed: ABORTED: be?cause"),
        (
            Health((grpc.StatusCode.NOT_FOUND, ""), reason="unknown service"),
            3,
            f'health rpc failed: NOT_FOUND: the server has no service "{"s" * 200}"',
        ),
        (None, 3, f"health rpc failed: UNIMPLEMENTED: {NOT_IMPLEMENTED}"),
    ],
)
async def test_an_answer_becomes_an_exit_code(
    servicer: Health | None, exit_code: int, text: str
) -> None:
    """Exit codes are grpc-health-probe's, but UNAVAILABLE with ghealth's reason is 4."""
    async with serving(servicer) as port:
        report = await checked(port, service="s" * 200)
    assert (report.exit_code, report.text) == (exit_code, text)


async def test_every_transport_carries_a_request_and_its_answer(transport: Transport) -> None:
    """TLS with and without verification and client certificates, and compression."""
    servicer = Health(NOT_SERVING, reason="draining")
    server, options = transport
    async with serving(servicer, server) as port:
        report = await checked(port, service="s" * 200, **options)
    assert (report.exit_code, report.text) == (ExitCode.NOT_SERVING, "NOT_SERVING: draining")
    assert servicer.service == "s" * 200


@pytest.mark.parametrize(
    ("answers", "exit_code", "text"),
    [
        (responds(HEALTHY[:3], HEALTHY[3:6], HEALTHY[6:]), 0, "status: SERVING"),
        (responds(framed(gzip.compress(b"\x08\x01"), compressed=True)), 0, "status: SERVING"),
        (responds(framed(b"\x08\x02\x08\x81\x00")), 0, "status: SERVING"),
        (responds(framed(b"\x08\x02"), ghealth_reason="a"), 4, "NOT_SERVING: a"),
        (responds(), 3, "INTERNAL: 0 messages instead of one"),
        (responds(HEALTHY * 2), 3, "INTERNAL: 2 messages instead of one"),
        (responds(b"\0\xff\xff\xff\xff"), 3, "INTERNAL: malformed message"),
        (responds(framed(b"\xff")), 3, "INTERNAL: malformed message"),
        (responds(framed(b"\x10\x01")), 3, "INTERNAL: malformed message"),
        (responds(framed(b"\x1f", compressed=True)), 3, "INTERNAL: malformed message"),
        (
            responds(framed(b"abc", compressed=True)),
            3,
            "INTERNAL: Error -3 while decompressing data: incorrect header check",
        ),
        (responds(code="13", grpc_message="%C3%A9%1B"), 3, "INTERNAL: é?"),
        (responds(code="99"), 3, "99"),
        (
            lambda connection: connection.reset_stream(1),
            3,
            "UNAVAILABLE: request reset by the server",
        ),
        (goaway_then(0), 3, "UNAVAILABLE: connection closed without an answer"),
    ],
)
async def test_answers_of_other_servers(answers: Answers, exit_code: int, text: str) -> None:
    """An answer that is not one message with a status is an RPC that failed, in one line."""
    report = await checked_peer(answers)
    expected = f"health rpc failed: {text}" if exit_code == ExitCode.RPC_FAILED else text
    assert (report.exit_code, report.text) == (exit_code, expected)
    assert report.keys["text"] == expected


async def test_what_comes_before_or_instead_of_an_answer() -> None:
    """A 103 is not the answer (RFC 9110, 15.2), and a page of a proxy has no messages."""

    def answer(connection: h2.connection.H2Connection) -> None:
        connection.send_headers(1, [(":status", "103"), ("link", "</a>; rel=preload")])
        responds(HEALTHY)(connection)

    def page(connection: h2.connection.H2Connection) -> None:
        connection.send_headers(1, [(":status", "502"), ("content-type", "text/html")])
        connection.send_data(1, b"<html>Bad Gateway</html>", end_stream=True)

    assert (await checked_peer(answer)).text == "status: SERVING"
    report = await checked_peer(page)
    text = "health rpc failed: UNKNOWN: HTTP status 502 without a gRPC status"
    assert (report.exit_code, report.text) == (ExitCode.RPC_FAILED, text)


async def test_a_server_that_hangs_up() -> None:
    """Before HTTP/2 has begun the connection failed; after the request, the RPC."""
    async with target(says(b""), reads=False) as peer:
        report = await checked(peer.port, connect_timeout=0.2)
    # The kernel sends a reset instead if something was not read yet.
    assert report.exit_code is ExitCode.NO_CONNECTION
    assert str(report.keys["reason"]).startswith("connection ")
    peer_ = Http2Peer(lambda _: None, stays=False)
    async with target(peer_.talk, reads=False) as peer:
        report = await checked(peer.port)
    assert report.exit_code is ExitCode.RPC_FAILED
    assert report.text.startswith("health rpc failed: UNAVAILABLE: connection ")


@pytest.mark.parametrize(
    ("timeout", "text"),
    [
        (1.0, "no answer before the deadline of 1 s; try --rpc-timeout 5s"),
        (4.5, "no answer before the deadline of 4.5 s; try --rpc-timeout 9s"),
    ],
)
async def test_a_deadline_that_was_too_short_has_a_hint(timeout: float, text: str) -> None:
    """The reason that a longer timeout would avoid names one."""
    async with serving(Health(NOT_SERVING, reason=DEADLINE)) as port:
        report = await checked(port, rpc_timeout=timeout)
    assert report.text == f"NOT_SERVING: {text}"
    assert report.keys["reason"] == DEADLINE


async def test_the_keys_of_the_json_output() -> None:
    """The keys are documented and stable."""
    async with serving(Health((UNAVAILABLE, ""), reason="draining")) as port:
        report = await checked(port, service="s")
    assert report.keys == {
        "exit_code": 4,
        "conclusion": "not serving",
        "address": f"localhost:{port}",
        "service": "s",
        "status": None,
        "code": 14,
        "code_name": "UNAVAILABLE",
        "reason": "draining",
        "text": "UNAVAILABLE: draining",
    }


async def test_a_server_that_comes_within_the_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection is tried again until its timeout; then the last cause is named."""
    monkeypatch.setattr(call, "RECONNECT_INTERVAL", 0.01)
    attempts: list[Any] = []
    connect = http2.connect

    def late(*arguments: Any, **options: Any) -> http2.Connection:
        attempts.append(arguments)
        if len(attempts) == 1:
            raise http2.Http2Error("connection refused")
        return connect(*arguments, **options)

    monkeypatch.setattr(http2, "connect", late)
    async with serving(Health(SERVING)) as port:
        assert (await checked(port)).exit_code is ExitCode.SERVING
    assert len(attempts) == 2
    with nobody() as port:
        report = await checked(port, connect_timeout=0.05)
    assert len(attempts) > 3
    assert report.exit_code is ExitCode.NO_CONNECTION
    assert report.text == (
        f'failed to connect to "localhost:{port}" within 0.05 s: connection refused'
    )
    assert report.keys["code"] is None


@pytest.mark.parametrize("tls", [None, UNVERIFIED])
async def test_a_server_that_accepts_and_is_silent_is_no_connection(tls: Any) -> None:
    """A connection is one once the server speaks HTTP/2."""
    async with target(is_silent, reads=False) as peer:
        report = await checked(peer.port, connect_timeout=0.1, tls=tls)
    assert report.text == f'failed to connect to "localhost:{peer.port}" within 0.1 s'
    assert report.exit_code is ExitCode.NO_CONNECTION


async def test_a_server_that_hangs_is_an_rpc_that_failed() -> None:
    """The timeout of the answer is not the connection's."""
    report = await checked_peer(lambda _: None, rpc_timeout=0.2)
    assert (report.exit_code, report.text) == (
        ExitCode.RPC_FAILED,
        "health rpc failed: DEADLINE_EXCEEDED: no answer within 0.2 s",
    )


async def test_headers_user_agent_and_compression_reach_the_server() -> None:
    """The flags of grpc-health-probe for the request do what they do there."""
    servicer = Health(SERVING)
    headers = [("X-One", "1"), ("two-bin", "é"), ("te", "ignored"), (":path", "ignored")]
    steps: list[str] = []
    async with serving(servicer) as port:
        asked = request(port, headers=headers, gzip=True, user_agent="me", service="é")
        report = await asyncio.to_thread(check, asked, steps.append)
    assert report.exit_code is ExitCode.SERVING
    assert steps == [f"connecting to localhost:{port}", "connected", "answered"]  # the flag -v
    assert servicer.service == "é"
    assert servicer.metadata["x-one"] == "1"
    assert servicer.metadata["two-bin"] == "é".encode()
    # ghealth sends the message to clients with such a word (GHEALTH_STATUS_CALLERS).
    assert servicer.metadata["user-agent"] == "me grpc-h2"


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
    async with serving(Health(SERVING)) as port:
        report = await checked(port, **fields)
        watched = await first_of_watch(request(port, **fields))
    assert report.exit_code is ExitCode.RPC_FAILED
    assert report.text == watched.text == f"health rpc failed: INTERNAL: {text}"


async def test_arguments_of_any_length_and_bytes_are_no_bug() -> None:
    """A user agent may have bytes that are not UTF-8, and a name may be too long for a frame."""
    peer = Http2Peer(responds(HEALTHY))
    async with target(peer.talk, reads=False) as listening:
        report = await checked(listening.port, user_agent="\udcff")
        assert report.exit_code is ExitCode.SERVING
        assert (b"user-agent", b"\xff grpc-h2") in peer.headers
        report = await checked(listening.port, service="s" * 20_000)
    assert report.text == "health rpc failed: UNAVAILABLE: the server does not accept the request"


async def test_a_unix_socket(tmp_path: Path) -> None:
    """Any path of a socket works, with and without TLS, where the host is localhost."""
    server = Server.parse(f"unix:{tmp_path}/a b%20")
    tls = client_context(ca_cert=files(tmp_path)["ca_cert"])
    for own, options in ((None, {}), (credentials(), {"tls": tls})):
        async with serving(Health(SERVING), own, f"unix:{tmp_path}/a%20b%2520"):
            assert (await checked(0, server=server, **options)).exit_code is ExitCode.SERVING


@pytest.mark.parametrize(
    ("server", "options", "cause"),
    [
        ({"expired": True}, {}, "certificate has expired"),
        ({}, {"server_name": "other"}, "Hostname mismatch, certificate is not valid for 'other'."),
        ({}, {"server_name": ".a"}, "'.a' is not a host name"),
        ({}, {"server_name": "é"}, "'é' is not a host name"),
    ],
)
async def test_a_certificate_that_does_not_verify(
    tmp_path: Path, server: dict[str, Any], options: dict[str, Any], cause: str
) -> None:
    """A certificate that does not verify means no connection, and the cause is named."""
    tls = client_context(ca_cert=files(tmp_path)["ca_cert"])
    async with serving(Health(SERVING), credentials(**server)) as port:
        report = await checked(port, tls=tls, connect_timeout=0.5, **options)
    assert (report.exit_code, report.keys["reason"]) == (
        ExitCode.NO_CONNECTION,
        f"{TLS_FAILED}: {cause}",
    )


async def test_a_final_dot_is_no_part_of_the_servers_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SNI and the certificate have the name without it (RFC 6066, 3); DNS has it."""
    names: list[str | None] = []
    addresses = http2._addresses

    def look_up(name: bytes, port: int, flags: int = 0) -> list[Any]:
        return addresses(b"127.0.0.1" if name == b"localhost." else name, port, flags)

    monkeypatch.setattr(http2, "_addresses", look_up)
    context = server_context(expired=False)
    context.sni_callback = lambda _socket, name, _context: names.append(name)
    tls = client_context(ca_cert=files(tmp_path)["ca_cert"])
    async with target(Http2Peer(responds(HEALTHY)).talk, reads=False, tls=context) as peer:
        server = Server.parse(f"localhost.:{peer.port}")
        assert (await checked(0, server=server, tls=tls)).exit_code is ExitCode.SERVING
        report = await checked(peer.port, tls=tls, server_name="localhost.")
    assert report.exit_code is ExitCode.SERVING
    assert names == ["localhost", "localhost"]


@pytest.mark.parametrize(
    ("behaviour", "context", "reason"),
    [
        (is_silent, server_context(alpn=False), "the server does not offer HTTP/2 over TLS (ALPN)"),
        (says(b"HTTP/1.1 400 Bad Request\r\n\r\n"), None, f"{TLS_FAILED}: wrong version number"),
        (says(b""), None, f"{TLS_FAILED}: "),
    ],
)
async def test_tls_that_fails_is_no_connection(behaviour: Any, context: Any, reason: str) -> None:
    """A handshake must succeed, and agree on HTTP/2, as gRPC requires."""
    async with target(behaviour, reads=False, tls=context) as peer:
        report = await checked(peer.port, tls=UNVERIFIED, connect_timeout=0.5)
    assert report.exit_code is ExitCode.NO_CONNECTION
    assert str(report.keys["reason"]).startswith(reason)


async def test_a_client_certificate_that_is_missing_is_named() -> None:
    """With TLS 1.3 the server refuses it only after the handshake."""
    async with serving(Health(SERVING), credentials(requires_client=True)) as port:
        report = await checked(port, tls=UNVERIFIED, connect_timeout=0.5)
    assert report.exit_code is ExitCode.NO_CONNECTION
    assert str(report.keys["reason"]).startswith((TLS_FAILED, "connection "))


async def test_the_longest_timeout_that_grpc_can_express() -> None:
    """A `grpc-timeout` has at most eight digits, and a socket cannot wait for years."""
    peer = Http2Peer(responds(HEALTHY))
    async with target(peer.talk, reads=False) as listening:
        await checked(listening.port, connect_timeout=9e9, rpc_timeout=9e9)
    assert (b"grpc-timeout", b"99999999m") in peer.headers


class EnoughError(Exception):
    """Ends a watch that would never end."""


def enough() -> None:
    raise EnoughError


async def first_of_watch(asked: Request) -> Report:
    return await asyncio.to_thread(next, watch(asked, pause=enough))


async def watched(asked: Request, pause: Callable[[], None] = enough) -> list[str]:
    """Follow a watch until a pause raises."""
    texts: list[str] = []

    def follow() -> None:
        with contextlib.suppress(EnoughError):
            texts.extend(report.text for report in watch(asked, pause=pause))

    await asyncio.to_thread(follow)
    return texts


async def test_a_watch_reports_changes_only_and_connects_again() -> None:
    """A watch reports each change, the loss of the server included, with the reason of a Check."""
    servicer = Health(SERVING, (UNAVAILABLE, ""), reason="draining")
    rounds: Iterator[list[Any]] = iter(
        [[(UNAVAILABLE, "")], [SERVING, SERVING], [NOT_SERVING], [SERVING]]
    )

    def pause() -> None:
        says = next(rounds, None)
        if says is None:
            raise EnoughError
        servicer.says = says

    async with serving(servicer) as port:
        texts = await watched(request(port), pause)
    assert texts == [
        "status: SERVING",
        "UNAVAILABLE: draining",
        "status: SERVING",
        "NOT_SERVING: draining",
        "status: SERVING",
    ]


async def test_a_watch_whose_check_has_another_status() -> None:
    """The reason of another status is not this one's."""
    async with serving(Health(SERVING, NOT_SERVING)) as port:
        texts = await watched(request(port))
    assert texts == ["status: SERVING", 'service unhealthy (responded with "NOT_SERVING")']


@pytest.mark.parametrize(
    ("answers", "text"),
    [
        (responds(), "health rpc failed: INTERNAL: 0 messages instead of one"),
        (responds(framed(b"\xff")), "health rpc failed: INTERNAL: malformed message"),
        (responds(HEALTHY, code="99"), "health rpc failed: 99"),
    ],
)
async def test_a_watch_that_ends_badly_says_so(answers: Answers, text: str) -> None:
    """A Watch that ends without a message, or with an error, is an RPC that failed."""
    async with target(Http2Peer(answers).talk, reads=False) as peer:
        texts = await watched(request(peer.port))
    assert texts[-1] == text


async def test_a_watch_of_a_server_that_is_not_there() -> None:
    """A watch reports a lost connection once, and continues."""
    rounds = iter(range(2))

    def pause() -> None:
        if next(rounds, None) is None:
            raise EnoughError

    with nobody() as port:
        texts = await watched(request(port, connect_timeout=0.5), pause)
    assert len(texts) == 1
    assert texts[0].endswith("connection refused")


def test_a_check_loads_no_library_of_the_server(tmp_path: Path) -> None:
    """It runs inside the server's memory limit: gRPC and pydantic alone take 40 MiB."""
    ca = files(tmp_path)["ca_cert"]
    with nobody() as port:
        for flags in ([], ["--tls", f"--tls-ca-cert={ca}"], ["--as=alb"], ["--output=json"]):
            program = (
                "import sys\nfrom ghealth.cli import main\n"
                f"main(['check', '-connect-timeout=10ms', *{flags!r}])\n"
                "print(*sys.modules)"
            )
            done = subprocess.run(
                [sys.executable, "-c", program],
                env=dict.fromkeys(("GHEALTH_LISTEN", "GHEALTH_TLS_LISTEN"), f"127.0.0.1:{port}"),
                capture_output=True,
                text=True,
                check=True,
            )
            modules = set(done.stdout.splitlines()[-1].split())
            heavy = {"grpc", "google", "google.protobuf", "pydantic", "httpx", "asyncio"}
            assert "h2.connection" in modules
            assert not heavy & modules
            assert ("ssl" in modules) == ("--tls" in flags)

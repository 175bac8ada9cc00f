import asyncio
import contextlib
import gzip
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest

from ghealth import names
from ghealth.check.certificates import CertificateError, Tls
from ghealth.check.client import check, watch
from ghealth.check.question import Question
from ghealth.check.report import ExitCode
from ghealth.check.target import Target
from tests.support.peers import is_silent, nobody, says, target
from tests.unit.check.servers import (
    NOT_SERVING,
    SERVING,
    Answers,
    Hanging,
    Health,
    Http2Peer,
    credentials,
    files,
    framed,
    goaway_then,
    question,
    responds,
    server_context,
    serving,
    trailers,
)

ABORTED = grpc.StatusCode.ABORTED
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
UNVERIFIED = Tls(verify=False)
NOT_IMPLEMENTED = "this server does not implement grpc.health.v1.Health"
DEADLINE = "no answer before the caller's deadline"


def transports(folder: Path) -> list[tuple[grpc.ServerCredentials | None, Tls | None]]:
    """All ways to carry a question: the server's credentials and the client's TLS."""
    return [
        (None, None),
        (credentials(), replace(files(folder), client_cert="", client_key="")),
        (credentials(expired=True), UNVERIFIED),
        (credentials(requires_client=True), files(folder)),
        (credentials(requires_client=True), replace(files(folder), verify=False)),
    ]


@pytest.fixture(params=range(5), ids=["plaintext", "tls", "unverified", "mtls", "unverified mtls"])
def transport(
    request: pytest.FixtureRequest, tmp_path: Path
) -> tuple[grpc.ServerCredentials | None, Tls | None]:
    index: int = request.param
    return transports(tmp_path)[index]


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
            'health rpc failed: NOT_FOUND: the server has no service "s"',
        ),
        (
            None,
            3,
            f"health rpc failed: UNIMPLEMENTED: {NOT_IMPLEMENTED}",
        ),
    ],
)
async def test_an_answer_becomes_an_exit_code(
    transport: tuple[grpc.ServerCredentials | None, Tls | None],
    servicer: Health | None,
    exit_code: int,
    text: str,
) -> None:
    """Exit codes are grpc-health-probe's, but UNAVAILABLE with ghealth's reason is 4."""
    server, tls = transport
    async with serving(servicer, server) as port:
        report = await check(question(port, service="s", tls=tls))
    assert (report.exit_code, report.text) == (exit_code, text)


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
        report = await check(question(port, rpc_timeout=timeout))
    assert report.text == f"NOT_SERVING: {text}"
    assert report.keys["reason"] == DEADLINE


async def test_the_keys_of_the_json_output() -> None:
    """The keys are documented and stable."""
    async with serving(Health((UNAVAILABLE, ""), reason="draining")) as port:
        report = await check(question(port, service="s"))
    assert report.keys == {
        "exit_code": 4,
        "conclusion": "not serving",
        "address": f"127.0.0.1:{port}",
        "service": "s",
        "status": None,
        "code": 14,
        "code_name": "UNAVAILABLE",
        "reason": "draining",
        "text": "UNAVAILABLE: draining",
    }


async def test_a_refused_connection_says_so() -> None:
    """A connection that fails has exit code 2, after its timeout, and the cause."""
    with nobody() as port:
        report = await check(question(port, connect_timeout=0.1))
    assert report.exit_code is ExitCode.NO_CONNECTION
    assert report.text.startswith(f'failed to connect to "127.0.0.1:{port}" within 0.1 s: ')
    assert report.text.endswith("Connection refused")
    assert report.keys["code"] is None


async def test_a_refused_connection_says_so_without_verification_too() -> None:
    """The cause is the same in few words."""
    with nobody() as port:
        report = await check(question(port, tls=UNVERIFIED, connect_timeout=0.1))
    assert report.keys["reason"] == "connection refused"
    assert report.exit_code is ExitCode.NO_CONNECTION


async def test_a_server_that_comes_within_the_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without verification, too, a connection is tried again until its timeout."""
    monkeypatch.setattr("ghealth.check.unverified.RECONNECT_INTERVAL", 0)
    found: list[object] = []

    async def look_up(host: str, port: int) -> Any:
        found.append(host)
        return [] if len(found) == 1 else await names.look_up(host, port)

    monkeypatch.setattr("ghealth.check.http2.look_up", look_up)
    async with serving(Health(SERVING), credentials()) as port:
        assert (await check(question(port, tls=UNVERIFIED))).exit_code is ExitCode.SERVING
    assert len(found) == 2


@pytest.mark.parametrize("tls", [None, UNVERIFIED])
async def test_a_server_that_accepts_and_is_silent_is_no_connection(tls: Tls | None) -> None:
    """A connection is one once the server speaks HTTP/2."""
    async with target(is_silent, reads=False) as peer:
        report = await check(question(peer.port, connect_timeout=0.1, tls=tls))
    assert report.text == f'failed to connect to "127.0.0.1:{peer.port}" within 0.1 s'
    assert report.exit_code is ExitCode.NO_CONNECTION


async def test_a_connection_that_comes_too_late_counts_for_nothing() -> None:
    """The timeout decides, even if the server can be reached right after it."""
    async with serving(Health(SERVING)) as port:
        report = await check(question(port, connect_timeout=1e-9))
    assert report.text == f'failed to connect to "127.0.0.1:{port}" within 1e-09 s'


async def test_an_expired_certificate_is_named(tmp_path: Path) -> None:
    """A certificate that does not verify means no connection, and the cause names it."""
    tls = replace(files(tmp_path), server_name="")
    async with serving(Health(SERVING), credentials(expired=True)) as port:
        report = await check(question(port, tls=tls, connect_timeout=1.5))
    assert report.exit_code is ExitCode.NO_CONNECTION
    cause = "TLS handshake failed: CERTIFICATE_VERIFY_FAILED: certificate has expired"
    assert report.text.endswith(cause)


@pytest.mark.parametrize("secure", [False, True])
async def test_a_server_that_hangs_is_an_rpc_that_failed(*, secure: bool) -> None:
    """The timeout of the answer is not the connection's."""
    server, tls = (credentials(), UNVERIFIED) if secure else (None, None)
    async with serving(Hanging(), server) as port:
        report = await check(question(port, rpc_timeout=0.2, tls=tls))
    assert (report.exit_code, report.text) == (
        ExitCode.RPC_FAILED,
        "health rpc failed: DEADLINE_EXCEEDED: no answer within 0.2 s",
    )


@pytest.mark.parametrize("secure", [False, True])
async def test_headers_user_agent_and_compression_reach_the_server(*, secure: bool) -> None:
    """The flags of grpc-health-probe for the request do what they do there."""
    server, tls = (credentials(), UNVERIFIED) if secure else (None, None)
    servicer = Health(SERVING)
    headers = [("X-One", "1"), ("two-bin", "é"), ("te", "ignored"), (":path", "ignored")]
    async with serving(servicer, server) as port:
        asked = question(port, headers=headers, gzip=True, tls=tls, user_agent="me", service="a")
        assert (await check(asked)).exit_code is ExitCode.SERVING
    assert servicer.service == "a"
    assert servicer.metadata["x-one"] == "1"
    assert servicer.metadata["two-bin"] == "é".encode()
    agent, library = servicer.metadata["user-agent"].split(maxsplit=1)
    assert agent == "me"
    assert library.startswith("grpc-")


@pytest.mark.parametrize("secure", [False, True])
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
    *, secure: bool, fields: dict[str, Any], text: str
) -> None:
    """grpc-health-probe finds it after connecting, too."""
    server, tls = (credentials(), UNVERIFIED) if secure else (None, None)
    async with serving(Health(SERVING), server) as port:
        report = await check(question(port, tls=tls, **fields))
        watched = await anext(watch(question(port, tls=tls, **fields), pause=never))
    assert report.exit_code is ExitCode.RPC_FAILED
    assert report.text == watched.text == f"health rpc failed: INTERNAL: {text}"


async def test_proxy_variables_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    """A check of this machine does not go through a proxy."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    async with serving(Health(SERVING)) as port:
        assert (await check(question(port))).exit_code is ExitCode.SERVING


async def test_a_unix_socket(tmp_path: Path) -> None:
    """Any path of a socket works, with and without TLS."""
    target = Target.parse(f"unix:{tmp_path}/a b%20")
    for server, tls in ((None, None), (credentials(), UNVERIFIED)):
        async with serving(Health(SERVING), server, target.uri):
            asked = question(0, target=target, tls=tls)
            assert (await check(asked)).exit_code is ExitCode.SERVING


async def test_a_malformed_message_is_an_rpc_that_failed() -> None:
    """A malformed message is reported in one line, in a Watch too."""
    peer = Http2Peer(responds(framed(b"\xff")))
    async with target(peer.talk, reads=False) as listening:
        asked = question(listening.port)
        report = await check(asked)
        watched = await anext(watch(asked, pause=never))
    assert report.text == watched.text == "health rpc failed: INTERNAL: malformed message"


async def test_the_steps_are_logged() -> None:
    """The flag -v shows how far a check came."""
    steps: list[str] = []
    async with serving(Health(SERVING)) as port:
        await check(question(port), steps.append)
    assert steps == [f"connecting to 127.0.0.1:{port}", "connected", "answered"]


def test_the_systems_authorities_are_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without --tls-ca-cert the system's certificates count, those of SSL_CERT_DIR too."""
    (tmp_path / "bundle.pem").write_text("bundle")
    (tmp_path / "0123abcd.0").write_text("hashed")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "bundle.pem"))
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))
    assert Tls().roots() == b"bundle\nhashed"


def test_a_system_without_authorities(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then gRPC uses its own."""
    monkeypatch.setattr("ssl.get_default_verify_paths", lambda: NoPaths)
    monkeypatch.setattr("ghealth.check.certificates._SYSTEM_FILES", ("/nonexistent",))
    assert Tls().roots() is None


class NoPaths:
    cafile = None
    capath = None


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"ca_cert": "/nonexistent"}, "/nonexistent: No such file or directory"),
        ({"ca_cert": __file__}, f"{__file__}: no certificates in it"),
        (
            {"client_cert": __file__, "client_key": __file__},
            f"{__file__} and {__file__}: not a certificate and its key",
        ),
    ],
)
def test_files_that_cannot_be_used(fields: dict[str, Any], text: str) -> None:
    """A file that cannot be read, or has something else in it, is found before connecting."""
    with pytest.raises(CertificateError) as error:
        Tls(**fields).context()
    assert str(error.value) == text


async def unverified(answers: Answers, **fields: Any) -> tuple[int, str]:
    """Check a peer of raw HTTP/2 over TLS."""
    async with target(Http2Peer(answers).talk, reads=False, tls=server_context()) as peer:
        report = await check(question(peer.port, tls=UNVERIFIED, **fields))
    return report.exit_code, report.text


HEALTHY = framed(b"\x08\x01")


@pytest.mark.parametrize(
    ("answers", "exit_code", "text"),
    [
        (responds(HEALTHY), 0, "status: SERVING"),
        (responds(HEALTHY[:3], HEALTHY[3:6], HEALTHY[6:]), 0, "status: SERVING"),
        (responds(framed(gzip.compress(b"\x08\x01"), compressed=True)), 0, "status: SERVING"),
        (responds(framed(b"\x08\x02"), ghealth_reason="a"), 4, "NOT_SERVING: a"),
        (responds(), 3, "health rpc failed: INTERNAL: 0 messages instead of one"),
        (responds(HEALTHY * 2), 3, "health rpc failed: INTERNAL: 2 messages instead of one"),
        (responds(b"\0\xff\xff\xff\xff"), 3, "health rpc failed: INTERNAL: malformed message"),
        (responds(framed(b"\xff")), 3, "health rpc failed: INTERNAL: malformed message"),
        (
            responds(framed(b"a", compressed=True)),
            3,
            "health rpc failed: INTERNAL: malformed message",
        ),
        (
            responds(code="13", grpc_message="%C3%A9%1B"),
            3,
            "health rpc failed: INTERNAL: é?",
        ),
        (responds(code="77"), 3, "health rpc failed: 77: "),
        (
            trailers((":status", "502")),
            3,
            "health rpc failed: UNKNOWN: HTTP status 502 without a gRPC status",
        ),
        (
            lambda connection: connection.reset_stream(1),
            3,
            "health rpc failed: UNAVAILABLE: request reset by the server",
        ),
        (
            goaway_then(0),
            3,
            "health rpc failed: UNAVAILABLE: connection closed without an answer",
        ),
    ],
)
async def test_answers_over_tls_without_verification(
    answers: Answers, exit_code: int, text: str
) -> None:
    """What Python's gRPC does for the other checks is done here for this one."""
    assert await unverified(answers) == (exit_code, text)


async def test_the_longest_timeout_that_grpc_can_express() -> None:
    """A `grpc-timeout` has at most eight digits."""
    peer = Http2Peer(responds(HEALTHY))
    async with target(peer.talk, reads=False, tls=server_context()) as listening:
        await check(question(listening.port, tls=UNVERIFIED, rpc_timeout=1e9))
    assert (b"grpc-timeout", b"99999999m") in peer.headers


async def test_tls_without_http2_is_no_connection() -> None:
    """A TLS handshake must agree on HTTP/2, as gRPC requires."""
    context = server_context(alpn=False)
    async with target(is_silent, reads=False, tls=context) as peer:
        report = await check(question(peer.port, tls=UNVERIFIED, connect_timeout=0.5))
    assert report.exit_code is ExitCode.NO_CONNECTION
    assert report.keys["reason"] == "the server does not offer HTTP/2 over TLS (ALPN)"


async def test_tls_to_a_plaintext_server_is_no_connection() -> None:
    """A failed handshake is reported as a failed handshake."""
    async with serving(Health(SERVING)) as port:
        report = await check(question(port, tls=UNVERIFIED, connect_timeout=0.5))
    assert report.exit_code is ExitCode.NO_CONNECTION
    assert report.keys["reason"] == "TLS handshake failed: wrong version number"


async def test_a_handshake_that_is_cut_off() -> None:
    """A server that closes during the handshake has another cause than one that refuses."""
    async with target(says(b""), reads=False) as peer:
        report = await check(question(peer.port, tls=UNVERIFIED, connect_timeout=0.5))
    assert report.keys["reason"] == "TLS handshake failed: connection closed"


class EnoughError(Exception):
    """Ends a watch that would never end."""


async def never() -> None:
    """Wait for ever."""
    await asyncio.Event().wait()


async def watched(asked: Question, pause: Callable[[], Awaitable[None]]) -> list[str]:
    """Follow a watch until a pause raises."""
    texts: list[str] = []
    with contextlib.suppress(EnoughError):
        async for report in watch(asked, pause=pause):
            texts.append(report.text)
    return texts


@pytest.mark.parametrize("secure", [False, True])
async def test_a_watch_reports_changes_only_and_connects_again(*, secure: bool) -> None:
    """A watch reports each change, the loss of the server included, with the reason of a Check."""
    server, tls = (credentials(), UNVERIFIED) if secure else (None, None)
    servicer = Health(SERVING, (UNAVAILABLE, ""), reason="draining")
    rounds: Iterator[list[Any]] = iter(
        [[(UNAVAILABLE, "")], [SERVING, SERVING], [NOT_SERVING], [SERVING], []]
    )

    async def pause() -> None:
        says = next(rounds, None)
        if says is None:
            raise EnoughError
        servicer.says = says

    async with serving(servicer, server) as port:
        texts = await watched(question(port, tls=tls), pause)
    assert texts == [
        "status: SERVING",
        "UNAVAILABLE: draining",
        "status: SERVING",
        "NOT_SERVING: draining",
        "status: SERVING",
    ]


async def test_a_watch_whose_check_has_another_status() -> None:
    """The reason of another status is not this one's."""
    servicer = Health(SERVING, NOT_SERVING)

    async def pause() -> None:
        raise EnoughError

    async with serving(servicer) as port:
        texts = await watched(question(port), pause)
    assert texts == ["status: SERVING", 'service unhealthy (responded with "NOT_SERVING")']


async def test_a_watch_of_a_server_that_is_not_there() -> None:
    """A watch reports a lost connection once, and continues."""
    rounds = iter(range(2))

    async def pause() -> None:
        if next(rounds, None) is None:
            raise EnoughError

    with nobody() as port:
        texts = await watched(question(port, connect_timeout=0.05), pause)
    assert len(texts) == 1
    assert "Connection refused" in texts[0]


@pytest.mark.parametrize(
    ("text", "uri", "authority"),
    [
        ("a.b:1", "dns:///a.b:1", "a.b:1"),
        (":1", "dns:///127.0.0.1:1", "127.0.0.1:1"),
        ("0.0.0.0:1", "dns:///127.0.0.1:1", "127.0.0.1:1"),
        ("[::]:1", "dns:///127.0.0.1:1", "127.0.0.1:1"),
        ("[::1]:1", "dns:///[::1]:1", "[::1]:1"),
        ("[fe80::1%a]:1", "dns:///[fe80::1%25a]:1", "[fe80::1%a]:1"),
        ("[127.0.0.1]:1", "dns:///127.0.0.1:1", "127.0.0.1:1"),
        ("dns:///a:1", "dns:///a:1", "a:1"),
        ("passthrough:///a:1", "dns:///a:1", "a:1"),
        ("unix:a", "unix:a", "localhost"),
        ("unix:/a", "unix:/a", "localhost"),
        ("unix:///a", "unix:/a", "localhost"),
        ("unix:/a b%\udcff", "unix:/a%20b%25%FF", "localhost"),
        ("unix-abstract:a", "unix-abstract:a", "localhost"),
    ],
)
def test_addresses(text: str, uri: str, authority: str) -> None:
    """The forms of an address that grpc-health-probe knows."""
    found = Target.parse(text)
    assert (str(found), found.uri, found.authority) == (text, uri, authority)


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        (f"unix:/{'a' * 107}", "the path has more than 107 bytes"),
        ("a:1 ", "there is white space around it"),
        ("a", "no port"),
    ],
)
def test_texts_that_are_not_addresses(text: str, hint: str) -> None:
    """Among them a path that no socket can have: it would keep gRPC from ever ending."""
    with pytest.raises(ValueError, match=hint):
        Target.parse(text)


async def test_an_abstract_unix_socket_over_tls() -> None:
    """A socket in the abstract namespace is found by the client without verification, too."""
    asked = question(0, target=Target.parse("unix-abstract:ghealth-nobody"), tls=UNVERIFIED)
    assert (await check(replace(asked, connect_timeout=0.1))).keys["reason"] == (
        "connection refused"
    )

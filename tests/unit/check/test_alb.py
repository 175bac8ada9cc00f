import asyncio
import ssl
from typing import Any

import pytest

from ghealth.check import alb
from ghealth.check.addresses import Server
from ghealth.check.report import ExitCode, Report
from ghealth.check.tls import client_context
from ghealth.health import CHECK_PATH, REASON_KEY
from ghealth.matcher import GRPC_CODES, Matcher
from tests.support import frames
from tests.support.peers import Behaviour, is_silent, repeats, resets, says, target
from tests.unit.check import servers
from tests.unit.check.servers import OK, TIMEOUT, Answer, Peer, goaway_then, responds, sends, status

UNVERIFIED = client_context(verify=False)
SERVING, NOT_SERVING = status(1), status(2)
UNKNOWN_PATH = sends(OK | {"grpc-status": "12"})


REASON = "gateway answered 503"
UNAVAILABLE = sends(OK | {"grpc-status": "14", "grpc-message": REASON, REASON_KEY: REASON})
READY_12 = sends(OK | {"grpc-status": "12", REASON_KEY: "gateway answered 200"})


async def checked(
    peer: Behaviour, *, server: ssl.SSLContext | None = None, matcher: str = "0", **settings: Any
) -> Report:
    """Check a target that runs in this thread."""
    group = alb.TargetGroup(
        matcher=Matcher.parse(matcher, GRPC_CODES), **({"timeout": TIMEOUT} | settings)
    )
    async with target(peer, reads=False, tls=server) as listening:
        address = Server.parse(f"127.0.0.1:{listening.port}")
        return await asyncio.to_thread(alb.check, address, group)


def failure(report: Report) -> tuple[str, str]:
    """Return how a check without a code failed: in our words, and in the console's."""
    assert report.exit_code is ExitCode.NOT_SERVING
    _, how, reason, conclusion = report.text.splitlines()
    assert conclusion == "unhealthy"
    assert report.keys["reason"] == reason
    assert how.startswith(f"no gRPC status: {report.keys['failure']} (after ")
    return str(report.keys["failure"]), reason


@pytest.mark.parametrize(
    ("answers", "path", "matcher", "healthy", "warning"),
    [
        (SERVING, CHECK_PATH, "0", True, None),
        (responds(b"a" * 9000, b"a"), CHECK_PATH, "0", True, None),
        (UNAVAILABLE, CHECK_PATH, "0", False, None),
        (NOT_SERVING, CHECK_PATH, "0", True, "the message is NOT_SERVING"),
        (NOT_SERVING, CHECK_PATH, "12", False, None),
        (UNAVAILABLE, CHECK_PATH, "0-99", True, "accepts every code"),
        (SERVING, CHECK_PATH, "0-16", True, "accepts every code"),
        (UNAVAILABLE, CHECK_PATH, "0,14", True, "accepts 14 (UNAVAILABLE)"),
        (UNKNOWN_PATH, "/a", "12", True, "can never fail"),
        (READY_12, "/a", "12", True, None),
        (READY_12, "/", "0", False, f"serve the path /; use {CHECK_PATH} and matcher 0"),
        (UNKNOWN_PATH, CHECK_PATH, "0", False, f"does not serve the path {CHECK_PATH}"),
    ],
)
async def test_what_an_alb_concludes(
    answers: Answer, path: str, matcher: str, healthy: bool, warning: str | None
) -> None:
    """The code against the matcher decides; a conclusion that misleads has a warning."""
    report = await checked(Peer(answers), path=path, matcher=matcher)
    assert report.exit_code == (ExitCode.SERVING if healthy else ExitCode.NOT_SERVING)
    assert report.text.endswith("\nhealthy" if healthy else "\nunhealthy")
    assert len(report.warnings) == (1 if warning else 0)
    assert all(warning in line for line in report.warnings if warning)
    assert report.keys["warnings"] == report.warnings


async def test_a_mismatch_in_the_consoles_words() -> None:
    """A code outside the matcher is named as the AWS console names it, with the reason."""
    report = await checked(Peer(UNAVAILABLE))
    sent, received, mismatch, conclusion = report.text.splitlines()
    address, seconds = report.keys["address"], report.keys["seconds"]
    assert sent == f"POST {CHECK_PATH} to {address} as {alb.USER_AGENT}, success codes 0"
    assert received.startswith("grpc-status 14 (UNAVAILABLE) 'gateway answered 503' in ")
    assert mismatch == "Target.ResponseCodeMismatch: Health checks failed with these codes: [14]"
    group = {"address": address, "path": CHECK_PATH, "matcher": "0", "tls": False}
    answer = {"code": 14, "code_name": "UNAVAILABLE", "grpc_message": "gateway answered 503"}
    result = {"exit_code": 4, "conclusion": conclusion, "failure": None, "reason": mismatch}
    assert report.keys == {**group, **answer, **result, "seconds": seconds, "warnings": ()}
    assert isinstance(seconds, float)


@pytest.mark.parametrize(
    ("behaviour", "how"),
    [
        (resets, "connection reset"),
        (says(b""), "connection closed without an answer"),
        (says(b"\x15\x03"), "answer is not HTTP/2"),
        (says(b"HTTP/1.1 400 Bad Request\r\n\r\n"), "answer is not HTTP/2"),
        (says(b"\0\0\0\1\0\0\0\0\1"), "answer is not HTTP/2"),
        (says(b"\0\0\1\4\0\0\0\0\0\0"), "answer is not HTTP/2"),
        (repeats(b"HTTP/1.1 400 Bad Request\r\n", every=TIMEOUT), "answer is not HTTP/2"),
        (Peer(sends({":status": "503", "grpc-status": "0"})), "HTTP status 503"),
        (Peer(sends({":status": "5\x1b[2J", "grpc-status": "0"})), "HTTP status 5?[2J"),
        (Peer(sends(OK)), "an answer without a gRPC status"),
        (Peer(sends(OK | {"grpc-status": "ok"})), "an answer without a gRPC status"),
        (Peer(sends(OK | {"grpc-status": "9" * 5000})), "an answer without a gRPC status"),
        (Peer(servers.resets_the_request), "request reset by the server"),
        (Peer(goaway_then(0, SERVING)), "connection closed without an answer"),
    ],
)
async def test_a_check_that_fails_says_how(behaviour: Behaviour, how: str) -> None:
    """Without a code in an HTTP 200 the console has one failure; the text before it has more."""
    assert failure(await checked(behaviour, matcher="0-99")) == (how, alb.FAILED)


@pytest.mark.parametrize(("tls", "missing"), [(None, "answer"), (UNVERIFIED, "connection")])
async def test_silence_is_a_timeout(tls: Any, missing: str) -> None:
    """The text of a timeout shows whether there was a connection."""
    report = await checked(is_silent, timeout=0.1, tls=tls)
    assert failure(report) == (f"no {missing} within 0.1 s", alb.TIMED_OUT)


async def test_https_health_checks_verify_nothing() -> None:
    """An expired certificate is good enough, as for an ALB, and no server name is sent."""
    names: list[str | None] = []
    context = servers.server_context(expired=True)
    context.sni_callback = lambda _socket, name, _context: names.append(name)
    peer = Peer(SERVING)
    report = await checked(peer, server=context, tls=UNVERIFIED)
    assert report.exit_code is ExitCode.SERVING
    assert names == [None]
    assert (b":scheme", b"https") in peer.headers


async def test_the_request_is_the_albs_header_for_header() -> None:
    """The request is the one captured from a real ALB, but for the end of the user agent."""
    peer = Peer(SERVING)
    await checked(peer, path="/a.B/C")
    assert peer.headers == [
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", b"/a.B/C"),
        (b"host", b"AWSALB"),
        (b"content-length", b"5"),
        (b"content-type", b"application/grpc"),
        (b"te", b"trailers"),
        (b"user-agent", b"ELB-HealthChecker/2.0 ghealth-check"),
        (b"accept-encoding", b"gzip, compressed"),
    ]
    assert peer.body == b"\0\0\0\0\0"
    assert peer.connections == 1


async def test_a_code_without_an_end_is_no_answer() -> None:
    """A code that came, and then the connection's end in place of the answer's, is unhealthy."""
    fields = frames.field(":status", "200") + frames.field("grpc-status", "0")
    answer = frames.frame(frames.Kind.HEADERS, fields, stream=1, flags=frames.END_HEADERS)
    how, _ = failure(await checked(says(frames.settings() + answer)))
    # Closing before everything was read is a reset.
    assert how in ("connection closed without an answer", "connection reset")


@pytest.mark.parametrize(("last_stream", "code"), [(1, 14), (0x7FFFFFFF, 14), (1, 0)])
async def test_an_answer_after_a_goaway_counts(last_stream: int, code: int) -> None:
    """A server that is draining sends a GOAWAY before its last answers."""
    answer = sends(OK | {"grpc-status": str(code)})
    report = await checked(Peer(goaway_then(last_stream, answer)))
    assert report.keys["code"] == code


async def test_a_servers_text_is_shown_escaped() -> None:
    """Control characters cannot change the terminal; an unknown code is shown as a number."""
    said = {"grpc-status": "77", "grpc-message": "%1B[2Jcl%C3%A9"}
    report = await checked(Peer(sends(OK | said)))
    assert "grpc-status 77 (unknown) '?[2Jclé'" in report.text
    assert report.keys["code_name"] is None

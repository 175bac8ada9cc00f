import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import h2.connection
import h2.events
import pytest

from ghealth import alb
from ghealth.address import Address
from ghealth.alb import Conclusion
from ghealth.matcher import GRPC_CODES, Matcher
from tests.support.peers import is_silent, nobody, resets, says, target

Handler = Callable[[Any, Any], Awaitable[bytes]]
NOT_SERVING = b"\x08\x02"
SERVING = b"\x08\x01"


@asynccontextmanager
async def grpc_server(says: bytes | tuple[grpc.StatusCode, str]) -> AsyncGenerator[int, None]:
    """Serve a Check that says one thing; every other path is unknown."""

    async def check(_request: Any, context: Any) -> bytes:
        if isinstance(says, tuple):
            await context.abort(*says)
        return says if isinstance(says, bytes) else b""

    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    method: Any = grpc.unary_unary_rpc_method_handler(check)
    for service, name in (("grpc.health.v1.Health", "Check"), ("AWS.ALB", "honest")):
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(service, {name: method}),)
        )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield port
    await server.stop(None)


async def concluded(
    port: int, path: str = alb.DEFAULT_PATH, matcher: str = "0", seconds: float = 20
) -> Conclusion:
    codes = Matcher.parse(matcher, GRPC_CODES)
    return await alb.check(Address("127.0.0.1", port), path, codes, seconds)


UNAVAILABLE = (grpc.StatusCode.UNAVAILABLE, "gateway answered 503")
HONEST_12 = (grpc.StatusCode.UNIMPLEMENTED, "gateway answered 200")


@pytest.mark.parametrize(
    ("said", "path", "matcher", "healthy", "warning"),
    [
        (SERVING, alb.DEFAULT_PATH, "0", True, None),
        (UNAVAILABLE, alb.DEFAULT_PATH, "0", False, None),
        (NOT_SERVING, alb.DEFAULT_PATH, "0", True, "says NOT_SERVING in its message"),
        (NOT_SERVING, alb.DEFAULT_PATH, "12", False, None),
        (UNAVAILABLE, alb.DEFAULT_PATH, "0-99", True, "passes any answer"),
        (SERVING, alb.DEFAULT_PATH, "0-16", True, "passes any answer"),
        (UNAVAILABLE, alb.DEFAULT_PATH, "0,14", True, "passes 14 (UNAVAILABLE)"),
        (SERVING, "/AWS.ALB/healthcheck", "12", True, "can never fail"),
        (HONEST_12, "/AWS.ALB/honest", "12", True, None),
        (SERVING, "/AWS.ALB/healthcheck", "0", False, None),
    ],
)
async def test_what_an_alb_concludes(
    said: Any, path: str, matcher: str, healthy: bool, warning: str | None
) -> None:
    """The code against the matcher is the verdict; one that means nothing is warned of."""
    async with grpc_server(said) as port:
        conclusion = await concluded(port, path, matcher)
    assert conclusion.healthy is healthy
    assert conclusion.text.endswith("\nhealthy" if healthy else "\nunhealthy")
    assert len(conclusion.warnings) == (1 if warning else 0)
    assert all(warning in told for told in conclusion.warnings if warning)


async def test_a_mismatch_in_the_consoles_words() -> None:
    """A code that the matcher does not have is named as the console names it, with the reason."""
    async with grpc_server(UNAVAILABLE) as port:
        lines = (await concluded(port)).text.splitlines()
    assert lines[0] == (
        f"POST {alb.DEFAULT_PATH} to 127.0.0.1:{port} as ELB-HealthChecker/2.0, success codes 0"
    )
    assert lines[1].startswith("grpc-status 14 (UNAVAILABLE) 'gateway answered 503' in ")
    assert lines[2:] == [
        "Target.ResponseCodeMismatch: Health checks failed with these codes: [14]",
        "unhealthy",
    ]


NO_ANSWER = [
    (is_silent, 0.2, "Target.Timeout: Request timed out"),
    (resets, 20, "Target.FailedHealthChecks: Health checks failed"),
    (says(b""), 20, "Target.FailedHealthChecks: Health checks failed"),
    (
        says(b"HTTP/1.1 400 Bad Request\r\n\r\n"),
        20,
        "Target.FailedHealthChecks: Health checks failed",
    ),
]


@pytest.mark.parametrize(("behaviour", "seconds", "reason"), NO_ANSWER)
async def test_no_answer_in_the_consoles_words(behaviour: Any, seconds: float, reason: str) -> None:
    """Silence is a timeout; a reset, a hang-up and what is no HTTP/2 are failed checks."""
    async with target(behaviour, reads=False) as peer:
        conclusion = await concluded(peer.port, seconds=seconds)
    assert conclusion.text.splitlines()[-2:] == [reason, "unhealthy"]
    assert not conclusion.healthy


async def test_nobody_there_is_a_failed_check() -> None:
    """A refused connection is a failed check."""
    with nobody() as port:
        conclusion = await concluded(port)
    assert conclusion.text.splitlines()[-2:] == [alb.FAILED, "unhealthy"]


class Http2Peer:
    """A server of raw frames that answers one request as told, and remembers it."""

    def __init__(
        self, answer: Callable[[h2.connection.H2Connection], None], *, stays: bool = True
    ) -> None:
        self._answer = answer
        self._stays = stays
        self.headers: list[tuple[bytes, bytes]] = []
        self.body = b""
        self.connections = 0

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        connection = h2.connection.H2Connection(
            h2.config.H2Configuration(client_side=False, validate_inbound_headers=False)
        )
        connection.initiate_connection()
        while received := await reader.read(65536):
            for event in connection.receive_data(received):
                match event:
                    case h2.events.RequestReceived():
                        self.headers = [(bytes(n), bytes(v)) for n, v in event.headers or ()]
                    case h2.events.DataReceived():
                        self.body += event.data or b""
                    case h2.events.StreamEnded():
                        self._answer(connection)
                        writer.write(connection.data_to_send())
                        if not self._stays:
                            return
            writer.write(connection.data_to_send())


def goaway_then(
    last_stream: int, *headers: tuple[str, str]
) -> Callable[[h2.connection.H2Connection], None]:
    """Say goodbye as a server that is stopping does, and answer or not."""

    def answer(connection: h2.connection.H2Connection) -> None:
        goodbye = b"\0\0\x08\x07\0\0\0\0\0" + last_stream.to_bytes(4, "big") + b"\0\0\0\0"
        if headers:
            connection.send_headers(1, headers, end_stream=True)
        connection._data_to_send[:0] = goodbye

    return answer


def trailers(*headers: tuple[str, str]) -> Callable[[h2.connection.H2Connection], None]:
    return lambda connection: connection.send_headers(1, headers, end_stream=True)


async def test_the_request_is_the_albs_header_for_header() -> None:
    """What is sent is what was captured from a real ALB: `host`, and no `:authority`."""
    peer = Http2Peer(trailers((":status", "200"), ("grpc-status", "0")))
    async with target(peer.talk, reads=False) as listening:
        assert (await concluded(listening.port, "/a.B/C")).healthy
    assert peer.headers == [
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", b"/a.B/C"),
        (b"host", b"AWSALB"),
        (b"content-length", b"5"),
        (b"content-type", b"application/grpc"),
        (b"te", b"trailers"),
        (b"user-agent", b"ELB-HealthChecker/2.0"),
        (b"accept-encoding", b"gzip, compressed"),
    ]
    assert peer.body == b"\0\0\0\0\0"
    assert peer.connections == 1


@pytest.mark.parametrize(
    "answer",
    [
        trailers((":status", "503"), ("grpc-status", "0")),
        trailers((":status", "200")),
        trailers((":status", "200"), ("grpc-status", "ok")),
        trailers((":status", "200"), ("grpc-status", "9" * 5000)),
        lambda connection: connection.reset_stream(1),
    ],
)
async def test_an_answer_that_is_no_grpc_is_a_failed_check(answer: Any) -> None:
    """Without a code in an HTTP 200, or with a reset, there is nothing to match."""
    async with target(Http2Peer(answer).talk, reads=False) as listening:
        conclusion = await concluded(listening.port, matcher="0-99")
    assert conclusion.text.splitlines()[-2:] == [alb.FAILED, "unhealthy"]


@pytest.mark.parametrize(("last_stream", "code"), [(1, 14), (0x7FFFFFFF, 14), (1, 0)])
async def test_a_server_that_says_goodbye_first_is_heard_out(last_stream: int, code: int) -> None:
    """An answer behind a GOAWAY counts: so a draining server answers."""
    headers = ((":status", "200"), ("grpc-status", str(code)))
    async with target(Http2Peer(goaway_then(last_stream, *headers)).talk, reads=False) as peer:
        conclusion = await concluded(peer.port)
    assert f"grpc-status {code} " in conclusion.text
    assert conclusion.healthy is (code == 0)


async def test_a_goodbye_that_refuses_is_a_failed_check() -> None:
    """A GOAWAY for a request that will not be answered ends the check at once."""
    async with target(Http2Peer(goaway_then(0)).talk, reads=False) as peer:
        conclusion = await concluded(peer.port)
    assert conclusion.text.splitlines()[-2:] == [alb.FAILED, "unhealthy"]


async def test_a_code_without_an_end_is_no_answer() -> None:
    """A code that came, and then the connection's end in place of the answer's, is unhealthy."""

    def answer(connection: h2.connection.H2Connection) -> None:
        connection.send_headers(1, ((":status", "200"), ("grpc-status", "0")))

    async with target(Http2Peer(answer, stays=False).talk, reads=False) as peer:
        conclusion = await concluded(peer.port)
    assert conclusion.text.splitlines()[-2:] == [alb.FAILED, "unhealthy"]


async def test_a_keepalive_http1_server_is_told_from_silence() -> None:
    """Whoever answers in HTTP/1.1, and keeps the connection, fails the check at once."""

    async def answers_once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n")
        await is_silent(reader, writer)

    async with target(answers_once, reads=False) as peer:
        conclusion = await concluded(peer.port)
    assert conclusion.text.splitlines()[-2] == alb.FAILED


async def test_a_message_of_any_kind_is_shown_escaped() -> None:
    """A server's words are shown decoded and quoted: they cannot write on a terminal."""
    said = ((":status", "200"), ("grpc-status", "13"), ("grpc-message", "%1B[2Jcl%C3%A9"))
    async with target(Http2Peer(trailers(*said)).talk, reads=False) as listening:
        text = (await concluded(listening.port)).text
    assert r"grpc-status 13 (INTERNAL) '\x1b[2Jclé'" in text


async def test_an_unknown_code_is_named_so() -> None:
    """A code that gRPC does not know is shown as a number."""
    said = ((":status", "200"), ("grpc-status", "77"))
    async with target(Http2Peer(trailers(*said)).talk, reads=False) as listening:
        assert "grpc-status 77 (unknown)" in (await concluded(listening.port)).text

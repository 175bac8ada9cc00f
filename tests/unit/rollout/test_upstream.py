"""An ALB's connection to a target, against a server that does what targets do at their end."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

import h2.config
import h2.connection
import h2.events
import pytest

from bench.rollout.upstream import Connection, open_connection
from tests.support import frames
from tests.support.frames import Kind

HEADERS = [
    (":method", "POST"),
    (":scheme", "http"),
    (":path", "/"),
    (":authority", "echo.example"),
]

Answer = Callable[[h2.connection.H2Connection, int], None]


def well(server: h2.connection.H2Connection, stream: int) -> None:
    server.send_headers(stream, [(":status", "200")])
    server.send_headers(stream, [("grpc-status", "0")], end_stream=True)


def reset(server: h2.connection.H2Connection, stream: int) -> None:
    server.reset_stream(stream)


def nothing(_server: h2.connection.H2Connection, _stream: int) -> None:
    pass


def goaway(last: int) -> bytes:
    return frames.frame(Kind.GOAWAY, last.to_bytes(4, "big") + bytes(4))


@asynccontextmanager
async def connected(
    answer: Answer, *, before: bytes = b"", hangs_up: bool = False
) -> AsyncGenerator[Connection]:
    """Connect to a server that answers in this way.

    Args:
        answer: What it does with a request.
        before: Bytes that it sends before that.
        hangs_up: Whether it ends the connection after that.
    """

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
        server.initiate_connection()
        writer.write(server.data_to_send())
        while data := await reader.read(65536):
            for event in server.receive_data(data):
                if isinstance(event, h2.events.StreamEnded) and event.stream_id:
                    writer.write(server.data_to_send() + before)
                    answer(server, event.stream_id)
            writer.write(server.data_to_send())
            if hangs_up and server.open_inbound_streams:
                break
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as listener:
        port = listener.sockets[0].getsockname()[1]
        connection = await open_connection("127.0.0.1", port)
        yield connection
        connection.close()


async def test_headers_and_trailers_come_back() -> None:
    """One answer holds the status and the trailers, and the connection serves the next request."""
    async with connected(well) as connection, asyncio.timeout(5):
        for _ in range(3):
            assert await connection.request(HEADERS) == {":status": "200", "grpc-status": "0"}
        assert connection.usable


async def test_a_goaway_lets_the_request_finish() -> None:
    """A draining target's GOAWAY retires the connection; what is under way is answered."""
    async with connected(well, before=goaway(last=2**31 - 1)) as connection, asyncio.timeout(5):
        assert (await connection.request(HEADERS))["grpc-status"] == "0"
        assert not connection.usable


@pytest.mark.parametrize(
    ("answer", "before", "hangs_up", "usable"),
    [
        pytest.param(nothing, goaway(last=0), False, False, id="a GOAWAY that leaves it out"),
        pytest.param(reset, b"", False, True, id="a reset"),
        pytest.param(nothing, b"", True, False, id="the end of the connection"),
    ],
)
async def test_a_request_that_the_target_drops_fails(
    answer: Answer, before: bytes, hangs_up: bool, usable: bool
) -> None:
    """Errors, HTTP 502: no answer comes, and an ALB is not known to repeat the request."""
    async with connected(answer, before=before, hangs_up=hangs_up) as connection:
        with pytest.raises(ConnectionError):
            async with asyncio.timeout(5):
                await connection.request(HEADERS)
        assert connection.usable is usable


async def test_one_that_gives_up_leaves_the_others_alone() -> None:
    """A caller whose deadline ends resets its stream, and the connection stays open."""
    async with connected(nothing) as connection:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await connection.request(HEADERS)
        assert connection.usable

"""A gRPC client of raw HTTP/2 frames, for requests that gRPC libraries do not send."""

import asyncio
import contextlib
import gzip
import socket
import ssl
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import h2.config
import h2.connection
import h2.events

TIMEOUT = 20.0
"""Seconds after which an answer is considered missing."""

EMPTY_MESSAGE = b"\0\0\0\0\0"
CHECK = "/grpc.health.v1.Health/Check"
USUAL = (
    (":method", "POST"),
    (":scheme", "http"),
    (":path", CHECK),
    (":authority", "localhost"),
    ("content-type", "application/grpc"),
    ("te", "trailers"),
)


def framed(message: bytes) -> bytes:
    """Frame a message as gRPC does."""
    return b"\0" + len(message).to_bytes(4, "big") + message


def gzipped(message: bytes) -> bytes:
    """Frame a message as gRPC does a compressed one."""
    compressed = gzip.compress(message)
    return b"\1" + len(compressed).to_bytes(4, "big") + compressed


@dataclass
class Reply:
    """The response to one call.

    Args:
        headers: Those of the response and the trailers, together.
        data: The body.
        blocks: The number of header blocks: one if the call ended without a body.
        certificate: The server's certificate, with TLS.
    """

    headers: dict[str, str] = field(default_factory=dict)
    data: bytes = b""
    blocks: int = 0
    certificate: bytes = b""

    @property
    def code(self) -> int:
        """The grpc-status."""
        return int(self.headers["grpc-status"])


async def call(
    port: int,
    *data: bytes,
    path: str = CHECK,
    ends: bool = True,
    headers: Iterable[tuple[str, str]] = (),
    without: Sequence[str] = (),
    trailers: Sequence[tuple[str, str]] = (),
    late: float = 0.0,
    tls: ssl.SSLContext | None = None,
) -> Reply:
    """Make one call on a separate connection and return the reply, within TIMEOUT.

    Args:
        port: Of the server, on 127.0.0.1.
        data: A DATA frame each; the last one ends the request.
        path: The method.
        ends: Whether the request ends.
        headers: Sent in addition to the usual ones.
        without: Usual headers that are not sent.
        trailers: Sent after the data, to end the request.
        late: Seconds between the headers and the data.
        tls: Trusts the server, for a call with TLS.
    """
    usual = {**dict(USUAL), ":path": path}
    sent = [header for header in usual.items() if header[0] not in without]
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=tls)
    connection = h2.connection.H2Connection(
        h2.config.H2Configuration(header_encoding="utf-8", validate_outbound_headers=False)
    )
    secure: ssl.SSLObject | None = writer.get_extra_info("ssl_object")
    certificate = (secure and secure.getpeercert(binary_form=True)) or b""
    try:
        async with asyncio.timeout(TIMEOUT):
            connection.initiate_connection()
            connection.send_headers(1, [*sent, *headers], end_stream=ends and not data)
            if late:
                writer.write(connection.data_to_send())
                await asyncio.sleep(late)
            for number, frame in enumerate(data, 1):
                last = ends and not trailers and number == len(data)
                connection.send_data(1, frame, end_stream=last)
            if trailers:
                connection.send_headers(1, trailers, end_stream=True)
            writer.write(connection.data_to_send())
            return replace(await _reply(connection, reader, writer), certificate=certificate)
    finally:
        # asyncio's close() with TLS would wait 30 s for a close_notify, which gRPC does not send.
        writer.close() if tls is None else writer.transport.abort()


async def vanish(port: int, *data: bytes, path: str = CHECK) -> None:
    """Start a call, and disconnect at once.

    Args:
        port: Of the server, on 127.0.0.1.
        data: A DATA frame each; the request does not end.
        path: The method.
    """
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    connection = h2.connection.H2Connection()
    connection.initiate_connection()
    connection.send_headers(1, list(({**dict(USUAL), ":path": path}).items()))
    for frame in data:
        connection.send_data(1, frame)
    writer.write(connection.data_to_send())
    await writer.drain()
    writer.close()
    await writer.wait_closed()


@contextlib.contextmanager
def silent(port: int, count: int) -> Iterator[list[socket.socket]]:
    """Hold connections on which nothing is sent.

    The server may reset them at any time. asyncio's connect would fail if that happened before its
    event loop looks again.

    Args:
        port: Of a server in another process, on 127.0.0.1.
        count: How many.
    """
    with contextlib.ExitStack() as stack:
        address = ("127.0.0.1", port)
        yield [stack.enter_context(socket.create_connection(address)) for _ in range(count)]


async def watching(port: int, count: int, *, together: asyncio.Barrier | None = None) -> None:
    """Open watches of the gateway on one connection, and disconnect when each has its first value.

    Args:
        port: Of the server, on 127.0.0.1.
        count: How many.
        together: A barrier before disconnecting: then other connections have their values too.
    """
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    connection = h2.connection.H2Connection()
    connection.initiate_connection()
    path = "/grpc.health.v1.Health/Watch"
    for stream in range(1, 2 * count, 2):
        headers = [(name, path if name == ":path" else value) for name, value in USUAL]
        connection.send_headers(stream, headers)
        connection.send_data(stream, EMPTY_MESSAGE, end_stream=True)
    received = 0
    while received < count:
        writer.write(connection.data_to_send())
        events = connection.receive_data(await reader.read(65536))
        received += sum(isinstance(event, h2.events.DataReceived) for event in events)
    if together is not None:
        await together.wait()
    writer.close()


async def _reply(
    connection: h2.connection.H2Connection,
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
) -> Reply:
    reply = Reply()
    while received := await reader.read(65536):
        for event in connection.receive_data(received):
            match event:
                case h2.events.ResponseReceived() | h2.events.TrailersReceived():
                    reply.headers |= {str(name): str(value) for name, value in event.headers or ()}
                    reply.blocks += 1
                case h2.events.DataReceived():
                    reply.data += event.data or b""
                case h2.events.StreamEnded():
                    return reply
                case h2.events.StreamReset():
                    raise AssertionError(f"the server reset the call: {event}")
        writer.write(connection.data_to_send())
    raise AssertionError("the server closed the connection without an answer")

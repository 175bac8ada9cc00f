"""A port that answers GET: one request a connection, bounded in size, number and time."""

import asyncio
import logging
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Final

import h11

_log = logging.getLogger(__name__)

MAX_CONNECTIONS: Final = 16
"""Connections that are served at a time; further ones are closed at once."""

MAX_HEAD: Final = 8 * 1024
"""Bytes of a request's line and headers."""

PATIENCE: Final = 10.0
"""Seconds that one connection may take in all."""

TEXT: Final = "text/plain; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Response:
    """The answer to a request.

    Args:
        content_type: Of the body.
        body: All of it.
        status: The HTTP status code.
        headers: Further ones.
    """

    content_type: str
    body: bytes
    status: HTTPStatus = HTTPStatus.OK
    headers: Mapping[str, str] = field(default_factory=dict)


Respond = Callable[[str, str], Awaitable[Response | None]]
"""Answers a GET, from its path without the query and its `Accept` header; None: no such path."""


@asynccontextmanager
async def serving(sockets: Sequence[socket.socket], respond: Respond) -> AsyncGenerator[None, None]:
    """Answer requests until the end of the block; then open connections are cut.

    Args:
        sockets: Bound ones; they are closed at the end.
        respond: What answers. What it raises is logged, and answered with 500.
    """
    talks: set[asyncio.Task[None]] = set()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(talks) >= MAX_CONNECTIONS:
            writer.transport.abort()
            return
        talk = asyncio.create_task(_talk(reader, writer, respond))
        talks.add(talk)
        talk.add_done_callback(talks.discard)

    servers = [await asyncio.start_server(accept, sock=bound) for bound in sockets]
    try:
        yield
    finally:
        for server in servers:
            server.close()
        for talk in talks:
            talk.cancel()
        await asyncio.gather(*talks, return_exceptions=True)


async def _talk(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, respond: Respond
) -> None:
    """Serve one connection."""
    with suppress(TimeoutError, OSError):
        try:
            async with asyncio.timeout(PATIENCE):
                writer.write(await _answer(reader, respond))
                await writer.drain()
                # Closing with something unread would reset the connection, and the answer with it.
                writer.write_eof()
                while await reader.read(MAX_HEAD):
                    pass
        finally:
            writer.transport.abort()


async def _answer(reader: asyncio.StreamReader, respond: Respond) -> bytes:
    """Read a request, and tell the bytes that answer it."""
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD)
    try:
        while (event := connection.next_event()) is h11.NEED_DATA:
            connection.receive_data(await reader.read(MAX_HEAD))
    except h11.RemoteProtocolError as error:
        return _rendered(connection, _plain(HTTPStatus(error.error_status_hint)))
    if not isinstance(event, h11.Request):
        return b""  # it hung up
    return _rendered(connection, await _response(event, respond))


async def _response(request: h11.Request, respond: Respond) -> Response:
    if request.method != b"GET":  # without a body, since it may be a HEAD
        return Response(TEXT, b"", HTTPStatus.METHOD_NOT_ALLOWED, {"Allow": "GET"})
    path = request.target.partition(b"?")[0].decode("ascii")
    accept = ",".join(
        value.decode("latin-1") for name, value in request.headers if name == b"accept"
    )
    try:
        response = await respond(path, accept)
    except Exception:
        _log.exception("answering HTTP failed", extra={"event": "internal_error"})
        return _plain(HTTPStatus.INTERNAL_SERVER_ERROR)
    return _plain(HTTPStatus.NOT_FOUND) if response is None else response


def _plain(status: HTTPStatus) -> Response:
    return Response(TEXT, f"{status.phrase}\n".encode(), status)


def _rendered(connection: h11.Connection, response: Response) -> bytes:
    headers = {
        "Content-Type": response.content_type,
        "Content-Length": str(len(response.body)),
        "Connection": "close",
        "Cache-Control": "no-store",
        "X-Content-Type-Options": "nosniff",
        **response.headers,
    }
    head = connection.send(
        h11.Response(
            status_code=response.status,
            reason=response.status.phrase,
            headers=list(headers.items()),
        )
    )
    return (head or b"") + response.body

"""A small HTTP/1.1 server: GET and HEAD, one request per connection, bounded sizes and times."""

import asyncio
import ipaddress
import logging
import re
import socket
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from email.utils import formatdate
from http import HTTPStatus
from typing import Final
from urllib.parse import unquote

import h11

_log = logging.getLogger(__name__)

MAX_CONNECTIONS: Final = 128
"""Maximum number of connections. One more closes the oldest that does not wait for an answer."""

ACCEPTED_PER_TURN: Final = 16
"""Connections that asyncio accepts in one turn of the event loop (its default is 100). A request
that has arrived is read within a few turns, before so many others can take its place."""

MAX_HEAD: Final = 8 * 1024
"""Maximum number of bytes of a request line and headers."""

HEAD_TIMEOUT: Final = 3.0
"""Seconds until the request line and headers must have arrived."""

ANSWER_TIMEOUT: Final = 10.0
"""Seconds for the answer: to compute it, send it, and see the client close."""

LOCAL_HOSTS: Final = frozenset({"localhost", "127.0.0.1", "[::1]"})
"""The only hosts that are served on a loopback address. A website whose name resolves to
127.0.0.1 (DNS rebinding) could otherwise read the port of a `kubectl port-forward`."""

TEXT: Final = "text/plain; charset=utf-8"

_METHODS: Final = (b"GET", b"HEAD")
_HOST: Final = re.compile(
    r"(?P<host>\[[0-9A-Za-z:.%_~-]+\]|[0-9A-Za-z._~%!$&'()*+,;=-]*)(?::[0-9]*)?"
)
_ABSOLUTE: Final = re.compile(
    r"(?P<scheme>[a-z][a-z0-9+.-]*)://(?P<authority>[^/?]*)(?P<rest>.*)", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class Request:
    """A GET request. HEAD is one whose answer is sent without the body.

    Args:
        path: The path, percent-decoded.
        query: What follows the question mark, as it was sent.
        headers: Values by lower-case name; those of a repeated header are joined by commas.
    """

    path: str
    query: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Response:
    """The answer to a request.

    Args:
        content_type: The type of the body.
        body: The whole body.
        status: The HTTP status code.
        headers: Further headers.
    """

    content_type: str
    body: bytes
    status: HTTPStatus = HTTPStatus.OK
    headers: Mapping[str, str] = field(default_factory=dict)


Respond = Callable[[Request], Awaitable[Response | None]]
"""Answers a request; None if there is no such path."""


def line(text: str, status: HTTPStatus = HTTPStatus.OK) -> Response:
    """Make a response of one line of text.

    Args:
        text: The line; white space in it becomes single spaces.
        status: The HTTP status code.
    """
    return Response(TEXT, f"{' '.join(text.split())}\n".encode(), status)


@asynccontextmanager
async def serving(
    sockets: Sequence[socket.socket], respond: Respond, *, now: Callable[[], float] = time.time
) -> AsyncGenerator[None, None]:
    """Answer requests until the end of the block; then open connections are closed.

    Args:
        sockets: Bound sockets; they are closed at the end.
        respond: Answers requests. An exception is logged and answered with 500.
        now: Seconds since 1970, for the `Date` header.
    """
    connections = _Connections(respond, now)
    servers = [
        await asyncio.start_server(
            connections.accept, sock=bound, limit=MAX_HEAD, backlog=ACCEPTED_PER_TURN
        )
        for bound in sockets
    ]
    for bound in sockets:
        bound.listen(MAX_CONNECTIONS)  # the kernel's queue is longer than what one turn accepts
    try:
        yield
    finally:
        for server in servers:
            server.close()
        await connections.close()


@dataclass(slots=True, eq=False)
class _Connection:
    """A connection.

    Args:
        reader: What the client sends.
        writer: What the client gets.
        is_waiting: Whether it has sent a request whose answer is being computed.
    """

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    is_waiting: bool = False

    @property
    def is_loopback(self) -> bool:
        """Whether the client connected to a loopback address."""
        # asyncio has no address for a connection that was reset at once.
        host, *_ = self.writer.get_extra_info("sockname") or ("127.0.0.1",)
        return _is_loopback(host)


class _Connections:
    """The open connections, the oldest first.

    Args:
        respond: Answers requests.
        now: Seconds since 1970.
    """

    def __init__(self, respond: Respond, now: Callable[[], float]) -> None:
        self._respond = respond
        self._now = now
        self._open: dict[_Connection, asyncio.Task[None]] = {}

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve a new connection. At the limit, close an old one first.

        So clients that are silent, or that do not read or close, cannot block others.
        """
        if len(self._open) >= MAX_CONNECTIONS:
            oldest = next((c for c in self._open if not c.is_waiting), next(iter(self._open)))
            self._open.pop(oldest).cancel()
        connection = _Connection(reader, writer)
        self._open[connection] = task = asyncio.create_task(self._serve(connection))
        task.add_done_callback(lambda _: self._open.pop(connection, None))

    async def close(self) -> None:
        """Close all connections."""
        tasks = list(self._open.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, connection: _Connection) -> None:
        reader, writer = connection.reader, connection.writer
        with suppress(TimeoutError, OSError):
            try:
                protocol = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD)
                async with asyncio.timeout(HEAD_TIMEOUT):
                    head = await _read_head(reader, protocol)
                async with asyncio.timeout(ANSWER_TIMEOUT):
                    if head is None:
                        return
                    response = await self._answer(head, connection)
                    writer.write(self._rendered(protocol, response))
                    if not (isinstance(head, h11.Request) and head.method == b"HEAD"):
                        writer.write(response.body)
                    await writer.drain()
                    # Closing with something unread would reset the connection, and the answer
                    # could be lost.
                    writer.write_eof()
                    while await reader.read(MAX_HEAD):
                        pass
            finally:
                writer.transport.abort()

    async def _answer(
        self, head: h11.Request | h11.RemoteProtocolError, connection: _Connection
    ) -> Response:
        if isinstance(head, h11.RemoteProtocolError):
            return _failure(HTTPStatus(head.error_status_hint))
        request = _parse(head, is_loopback=connection.is_loopback)
        if isinstance(request, Response):
            return request
        connection.is_waiting = True
        try:
            response = await self._respond(request)
        except Exception:
            _log.exception("answering HTTP failed", extra={"event": "internal_error"})
            return _failure(HTTPStatus.INTERNAL_SERVER_ERROR)
        finally:
            connection.is_waiting = False
        return response or _failure(HTTPStatus.NOT_FOUND)

    def _rendered(self, protocol: h11.Connection, response: Response) -> bytes:
        """Render the status line and headers."""
        headers = {
            "Date": formatdate(self._now(), usegmt=True),
            "Content-Type": response.content_type,
            "Content-Length": str(len(response.body)),
            "Connection": "close",
            "Cache-Control": "no-store",
            "X-Content-Type-Options": "nosniff",
            **response.headers,
        }
        head = protocol.send(
            h11.Response(
                status_code=response.status,
                reason=response.status.phrase,
                headers=list(headers.items()),
            )
        )
        return head or b""


def _is_loopback(host: str) -> bool:
    address = ipaddress.ip_address(host)
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        return address.ipv4_mapped.is_loopback
    return address.is_loopback


async def _read_head(
    reader: asyncio.StreamReader, protocol: h11.Connection
) -> h11.Request | h11.RemoteProtocolError | None:
    """Read the request line and headers; None if the client closes first."""
    try:
        while (event := protocol.next_event()) is h11.NEED_DATA:
            protocol.receive_data(await reader.read(MAX_HEAD))
    except h11.RemoteProtocolError as error:
        return error
    return event if isinstance(event, h11.Request) else None


def _parse(head: h11.Request, *, is_loopback: bool) -> Request | Response:
    """Parse a request line and headers as RFC 9112 and 9110 define them.

    h11 has verified that there is one `Host` header (none or one before HTTP/1.1).

    Returns:
        The request, or the answer to one that is refused.
    """
    headers: dict[str, str] = {}
    for raw_name, value in head.headers:
        name = raw_name.decode("ascii")
        headers[name] = ",".join(filter(None, (headers.get(name), value.decode("latin-1"))))
    if not head.http_version.startswith(b"1."):
        return _failure(HTTPStatus.HTTP_VERSION_NOT_SUPPORTED)
    if not _HOST.fullmatch(headers.get("host", "")):
        return _failure(HTTPStatus.BAD_REQUEST)
    if head.method not in _METHODS:
        allow = b", ".join(_METHODS).decode()
        return _failure(HTTPStatus.METHOD_NOT_ALLOWED, {"Allow": allow})
    target = _parse_target(head.target.decode("ascii"), headers.get("host"))
    if isinstance(target, HTTPStatus):
        return _failure(target)
    host, path, query = target
    if is_loopback and host not in LOCAL_HOSTS | {None}:
        return _failure(HTTPStatus.MISDIRECTED_REQUEST)
    return Request(path, query, headers)


def _parse_target(target: str, host: str | None) -> tuple[str | None, str, str] | HTTPStatus:
    """Parse the target of a GET or HEAD: in origin or absolute form (RFC 9112, 3.2).

    Returns:
        The host in lower case without its port (None before HTTP/1.1), the path and the query;
        or the status of the answer to a target that is refused.
    """
    if absolute := _ABSOLUTE.fullmatch(target):
        if absolute["scheme"].lower() != "http":
            return HTTPStatus.MISDIRECTED_REQUEST
        # The host in the target counts, and the header is ignored (RFC 9112, 3.2.2).
        host, target = absolute["authority"], absolute["rest"]
        if not host:
            return HTTPStatus.BAD_REQUEST
    elif not target.startswith("/"):
        return HTTPStatus.BAD_REQUEST
    authority = _HOST.fullmatch(host or "")
    if not authority or "#" in target:
        return HTTPStatus.BAD_REQUEST
    path, _, query = target.partition("?")
    return host and authority["host"].lower(), unquote(path) or "/", query


def _failure(status: HTTPStatus, headers: Mapping[str, str] | None = None) -> Response:
    return Response(TEXT, f"{status.phrase}\n".encode(), status, headers or {})

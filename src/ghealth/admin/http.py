"""A small HTTP/1.1 server: GET and HEAD, one request per connection, bounded sizes and times."""

import asyncio
import ipaddress
import logging
import re
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from email.utils import formatdate
from functools import partial
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

_HOST: Final = re.compile(
    r"(?P<host>\[[0-9a-z:.%_~-]+\]|[0-9a-z._~%!$&'()*+,;=-]*)(?::[0-9]*)?", re.IGNORECASE
)
_TARGET: Final = re.compile(  # in origin or absolute form (RFC 9112, 3.2)
    r"(?:(?P<scheme>[a-z][a-z0-9+.-]*)://(?P<host>[^/?#]+)(?=[/?]|$)|(?=/))"
    r"(?P<path>[^?#]*)(?:\?(?P<query>[^#]*))?",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Response:
    """The answer to a request."""

    content_type: str
    body: bytes
    status: HTTPStatus = HTTPStatus.OK
    headers: Mapping[str, str] = field(default_factory=dict)


Headers = Mapping[str, str]
"""Values by lower-case name; those of a repeated header are joined by commas."""

Respond = Callable[[str, str, Headers], Awaitable[Response | None]]
"""Answers a GET of a path (percent-decoded), a query (as it was sent) and headers; None if there is
no such path. HEAD is a GET whose answer is sent without the body."""


def encoded(text: str) -> bytes:
    """Encode a text; bytes of the environment that are not UTF-8 are escaped, as in the log."""
    return text.encode(errors="backslashreplace")


def line(text: str, status: HTTPStatus = HTTPStatus.OK) -> Response:
    """Make a response of one line of text; white space in it becomes single spaces."""
    return Response("text/plain; charset=utf-8", encoded(f"{' '.join(text.split())}\n"), status)


@asynccontextmanager
async def serving(sockets: Sequence[socket.socket], respond: Respond) -> AsyncGenerator[None, None]:
    """Answer requests until the end of the block; then open connections are closed.

    Args:
        sockets: Bound sockets; they are closed at the end.
        respond: Answers requests. An exception is logged and answered with 500.
    """
    connections = _Connections(respond)
    start = partial(asyncio.start_server, limit=MAX_HEAD, backlog=ACCEPTED_PER_TURN)
    servers = [await start(connections.accept, sock=bound) for bound in sockets]
    for bound in sockets:
        bound.listen(MAX_CONNECTIONS)  # the kernel's queue is longer than what one turn accepts
    try:
        yield
    finally:
        for server in servers:
            server.close()
        await connections.close()


class _Connections:
    """The open connections, and which of them wait for an answer that is being computed."""

    def __init__(self, respond: Respond) -> None:
        self._respond = respond
        self._open: dict[asyncio.Task[None], None] = {}  # the oldest first
        self._waiting: set[asyncio.Task[None] | None] = set()

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve a new connection. At the limit, close an old one first.

        So clients that are silent, or that do not read or close, cannot block others.
        """
        if len(self._open) >= MAX_CONNECTIONS:
            oldest = min(self._open, key=self._waiting.__contains__)  # the first of equal ones
            del self._open[oldest]
            oldest.cancel()
        task = asyncio.create_task(self._serve(reader, writer))
        self._open[task] = None
        task.add_done_callback(lambda _: self._open.pop(task, None))

    async def close(self) -> None:
        """Close all connections."""
        for task in self._open:
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        protocol = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD)
        # asyncio has no address for a connection that was reset at once.
        host, *_ = writer.get_extra_info("sockname") or ("127.0.0.1",)
        try:
            with suppress(TimeoutError, OSError):
                async with asyncio.timeout(HEAD_TIMEOUT):
                    head = await _read_head(reader, protocol)
                if head is None:
                    return
                async with asyncio.timeout(ANSWER_TIMEOUT):
                    response = await self._answer(head, is_loopback=_is_loopback(host))
                    writer.write(_rendered(protocol, response))
                    if isinstance(head, HTTPStatus) or head.method != b"HEAD":
                        writer.write(response.body)
                    await writer.drain()
                    # Closing with something unread would reset the connection, and the answer
                    # could be lost.
                    writer.write_eof()
                    while await reader.read(MAX_HEAD):
                        pass
        finally:
            writer.transport.abort()

    async def _answer(self, head: h11.Request | HTTPStatus, *, is_loopback: bool) -> Response:
        request = head if isinstance(head, HTTPStatus) else _parse(head, is_loopback=is_loopback)
        if isinstance(request, HTTPStatus):
            return _failure(request)
        task = asyncio.current_task()
        self._waiting.add(task)
        try:
            return await self._respond(*request) or _failure(HTTPStatus.NOT_FOUND)
        except Exception:
            _log.exception("answering HTTP failed", extra={"event": "internal_error"})
            return _failure(HTTPStatus.INTERNAL_SERVER_ERROR)
        finally:
            self._waiting.discard(task)


def _is_loopback(host: str) -> bool:
    address = ipaddress.ip_address(host)
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


async def _read_head(
    reader: asyncio.StreamReader, protocol: h11.Connection
) -> h11.Request | HTTPStatus | None:
    """Return the request line and headers, or the status of the answer to something else.

    None if the client closes first.
    """
    try:
        while (event := protocol.next_event()) is h11.NEED_DATA:
            protocol.receive_data(await reader.read(MAX_HEAD))
    except h11.RemoteProtocolError as error:
        return HTTPStatus(error.error_status_hint)
    return event if isinstance(event, h11.Request) else None


def _parse(head: h11.Request, *, is_loopback: bool) -> tuple[str, str, Headers] | HTTPStatus:
    """Return the path, query and headers, or the status of the answer to one that is refused.

    h11 has verified that there is one `Host` header (none or one before HTTP/1.1).
    """
    headers: dict[str, str] = {}
    for raw_name, value in head.headers:
        name = raw_name.decode("ascii")
        headers[name] = ",".join(filter(None, (headers.get(name), value.decode("latin-1"))))
    if head.method not in (b"GET", b"HEAD"):
        return HTTPStatus.METHOD_NOT_ALLOWED
    target = _TARGET.fullmatch(head.target.decode("ascii"))
    host = _HOST.fullmatch(headers.get("host", ""))
    if target and host and target["host"]:
        host = _HOST.fullmatch(target["host"])  # the header is ignored (RFC 9112, 3.2.2)
    if not target or not host:
        return HTTPStatus.BAD_REQUEST
    is_local = host["host"].lower() in LOCAL_HOSTS or not (target["host"] or "host" in headers)
    if (target["scheme"] or "http").lower() != "http" or (is_loopback and not is_local):
        return HTTPStatus.MISDIRECTED_REQUEST
    return unquote(target["path"]) or "/", target["query"] or "", headers


def _rendered(protocol: h11.Connection, response: Response) -> bytes:
    """Render the status line and headers."""
    headers = {
        "Date": formatdate(usegmt=True),
        "Content-Type": response.content_type,
        "Content-Length": str(len(response.body)),
        "Connection": "close",
        "Cache-Control": "no-store",
        "X-Content-Type-Options": "nosniff",
        **response.headers,
    }
    status = response.status
    head = h11.Response(status_code=status, reason=status.phrase, headers=list(headers.items()))
    return protocol.send(head) or b""


def _failure(status: HTTPStatus) -> Response:
    allow = {"Allow": "GET, HEAD"} if status is HTTPStatus.METHOD_NOT_ALLOWED else {}
    return replace(line(status.phrase, status), headers=allow)

"""One HTTP/2 request on its own connection, for requests that gRPC libraries cannot send.

Python's gRPC always verifies certificates, and it cannot send the request of an ALB.
"""

import asyncio
import socket
import ssl
from collections.abc import AsyncGenerator, Sequence
from contextlib import ExitStack, asynccontextmanager
from typing import Final

import h2.config
import h2.connection
import h2.events
import h2.exceptions

from ghealth.check.target import Target
from ghealth.health import ReasonKind
from ghealth.names import look_up

REFUSED: Final = ReasonKind.REFUSED.template
RESET: Final = ReasonKind.RESET.template
CLOSED: Final = ReasonKind.CLOSED.template
NAME_UNRESOLVED: Final = ReasonKind.NAME_UNRESOLVED.template
UNREACHABLE: Final = ReasonKind.UNREACHABLE.template
TLS_FAILED: Final = "TLS handshake failed"
NOT_HTTP2: Final = "answer is not HTTP/2"
REQUEST_RESET: Final = "request reset by the server"

_STREAM: Final = 1
_FRAME_HEADER: Final = 9
_MAX_FRAME: Final = 16_384
_SETTINGS: Final = 4
_GOAWAY: Final = 7


class Http2Error(Exception):
    """The connection or the request failed; the message is the cause, in a few words."""


class Connection:
    """A connection that carries one request.

    Args:
        reader: Its incoming side.
        writer: Its outgoing side.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._h2 = h2.connection.H2Connection(
            # The ALB's request has no :authority, which h2 would refuse to send.
            h2.config.H2Configuration(validate_outbound_headers=False)
        )
        self._h2.initiate_connection()
        self._has_settings = False
        self.headers: dict[str, str] = {}
        """The headers of the response, and its trailers once it is complete."""

    @property
    def is_negotiated(self) -> bool:
        """Whether the TLS handshake agreed on HTTP/2 (ALPN), which gRPC requires."""
        tls = self._writer.get_extra_info("ssl_object")
        return tls is not None and tls.selected_alpn_protocol() == "h2"

    async def ready(self) -> None:
        """Wait for the server's settings, with which HTTP/2 begins.

        Raises:
            Http2Error: If something else comes.
        """
        self._flush()
        await self._events()

    async def exchange(
        self, headers: Sequence[tuple[str, str]], body: bytes
    ) -> AsyncGenerator[bytes, None]:
        """Send the request and receive the response.

        Args:
            headers: The request's headers.
            body: Its body.

        Yields:
            The response's body, in pieces.

        Raises:
            Http2Error: If the connection or the request fails.
        """
        self._h2.send_headers(_STREAM, headers)
        self._h2.send_data(_STREAM, body, end_stream=True)
        self._flush()
        while True:
            for event in await self._events():
                match event:
                    case h2.events.ResponseReceived() | h2.events.TrailersReceived():
                        self.headers |= {
                            name.decode("latin-1"): value.decode("latin-1")
                            for name, value in event.headers or ()
                            if isinstance(name, bytes) and isinstance(value, bytes)
                        }
                    case h2.events.DataReceived():
                        yield event.data or b""
                        length = event.flow_controlled_length or 0
                        self._h2.acknowledge_received_data(length, _STREAM)
                    case h2.events.StreamReset():
                        raise Http2Error(REQUEST_RESET)
                    case h2.events.StreamEnded():
                        return
            self._flush()

    def _flush(self) -> None:
        self._writer.write(self._h2.data_to_send())

    async def _events(self) -> list[h2.events.Event]:
        try:
            return self._h2.receive_data(await self._frame())
        except asyncio.IncompleteReadError as error:
            is_garbage = error.partial and not self._has_settings
            raise Http2Error(NOT_HTTP2 if is_garbage else CLOSED) from None
        except h2.exceptions.ProtocolError:
            raise Http2Error(NOT_HTTP2) from None
        except OSError:
            raise Http2Error(RESET) from None

    async def _frame(self) -> bytes:
        """Read one frame (RFC 9113, 4.1), except a GOAWAY that lets the request finish.

        A stopping server sends one before its answer, and h2 accepts no frame after it.
        """
        header = await self._reader.readexactly(_FRAME_HEADER)
        length, kind = int.from_bytes(header[:3], "big"), header[3]
        if length > _MAX_FRAME or not (self._has_settings or kind == _SETTINGS):
            raise Http2Error(NOT_HTTP2)
        payload = await self._reader.readexactly(length)
        self._has_settings = True
        if kind != _GOAWAY:
            return header + payload
        last_stream = int.from_bytes(payload[:4], "big") & 0x7FFFFFFF
        if last_stream < _STREAM:
            raise Http2Error(CLOSED)
        return b""


@asynccontextmanager
async def connection(
    target: Target, tls: ssl.SSLContext | None, server_name: str = ""
) -> AsyncGenerator[Connection, None]:
    """Connect to a server.

    Args:
        target: The server.
        tls: For TLS.
        server_name: The name in the TLS handshake (SNI); empty for none.

    Raises:
        Http2Error: If it fails.
    """
    sock = await _connected(target)
    try:
        reader, writer = await asyncio.open_connection(
            sock=sock, ssl=tls, server_hostname=None if tls is None else server_name
        )
    except OSError as error:
        # An SSLError is an OSError, too.
        why = (error.reason or "") if isinstance(error, ssl.SSLError) else "connection closed"
        raise Http2Error(f"{TLS_FAILED}: {why.lower().replace('_', ' ')}") from None
    try:
        yield Connection(reader, writer)
    finally:
        writer.transport.abort()


async def _connected(target: Target) -> socket.socket:
    """Connect a socket, to each of the host's addresses in turn."""
    if target.address is None:
        return await _connect(socket.AF_UNIX, target.path)
    try:
        found = await look_up(target.address.host, target.address.port)
    except socket.gaierror:
        raise Http2Error(NAME_UNRESOLVED) from None
    except OSError as error:
        raise Http2Error(f"{UNREACHABLE}: {error.strerror or error}") from None
    failure = Http2Error(NAME_UNRESOLVED)
    for family, _, _, _, address in found:
        try:
            return await _connect(family, address)
        except Http2Error as error:
            failure = error
    raise failure


async def _connect(family: int, address: object) -> socket.socket:
    try:
        with ExitStack() as stack:
            sock = stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
            sock.settimeout(0)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(sock, address)  # type: ignore[arg-type]
            stack.pop_all()
    except ConnectionRefusedError:
        raise Http2Error(REFUSED) from None
    except OSError as error:
        raise Http2Error(f"{UNREACHABLE}: {error.strerror or error}") from None
    return sock

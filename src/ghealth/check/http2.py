"""One HTTP/2 request on its own connection: over TCP, a Unix domain socket or TLS.

gRPC libraries can neither send the request of an ALB nor skip the verification of a certificate,
and need three times the memory and the time. Every wait has a deadline, name look-ups too.
"""

import os
import re
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from time import monotonic
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote

import h2.config
import h2.connection
import h2.events
import h2.exceptions

from ghealth.check.addresses import Server
from ghealth.health import ReasonKind

if TYPE_CHECKING:
    import ssl  # takes 4 MiB, so it is imported only for TLS

_NOT_HTTP2: Final = "answer is not HTTP/2"

_CODE: Final = re.compile("[0-9]{1,4}")
_STREAM: Final = 1
_FRAME_HEADER: Final = 9
_MAX_FRAME: Final = 16_384
_SETTINGS: Final = 4
_GOAWAY: Final = 7

KEEPALIVE: Final = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}
"""Socket options (tcp(7)): after 40 s a watch, which has no deadline, reports that the machine is
gone."""

_MAX_WAIT: Final = 1e6
"""Seconds: the longest wait of a socket is 2^31 milliseconds."""


class Http2Error(Exception):
    """The connection or the request failed; the message is the cause, in a few words."""


class Deadline:
    """The time at which waiting ends.

    Args:
        seconds: From now.
    """

    def __init__(self, seconds: float) -> None:
        self._end = monotonic() + seconds

    def left(self) -> float:
        """Return how many seconds are left.

        Raises:
            TimeoutError: If none are.
        """
        seconds = self._end - monotonic()
        if seconds <= 0:
            raise TimeoutError
        return min(seconds, _MAX_WAIT)


class Connection:
    """A connection that carries one request.

    Args:
        sock: A connected socket, which `close` closes.
        deadline: The end of every wait; it may be replaced.
    """

    def __init__(self, sock: socket.socket, deadline: Deadline) -> None:
        self._sock = sock
        self.deadline = deadline
        self._h2 = h2.connection.H2Connection(
            # The ALB's request has no :authority, which h2 would refuse to send.
            h2.config.H2Configuration(validate_outbound_headers=False)
        )
        self._h2.initiate_connection()
        self._received = b""
        self._has_settings = False
        self.headers: dict[str, str] = {}
        """The headers of the response, and its trailers once it is complete, fit for a terminal."""

    @property
    def grpc_status(self) -> int | None:
        """The gRPC status code of the response, None without one."""
        code = self.headers.get("grpc-status", "")
        return int(code) if _CODE.fullmatch(code) else None

    @property
    def grpc_message(self) -> str:
        """The text with the code."""
        return _printable(unquote(self.headers.get("grpc-message", "")))

    def close(self) -> None:
        """Close the connection."""
        self._sock.close()

    def wait_for_settings(self) -> None:
        """Wait for the server's settings, with which HTTP/2 begins.

        Raises:
            Http2Error: If something else comes.
            TimeoutError: At the deadline.
        """
        self._events()

    def exchange(self, headers: Sequence[tuple[str, str]], body: bytes) -> Iterator[bytes]:
        """Send the request and receive the response.

        Args:
            headers: The request's headers.
            body: Its body.

        Yields:
            The response's body, in pieces.

        Raises:
            Http2Error: If the connection or the request fails.
            TimeoutError: At the deadline.
        """
        # Arguments of the command line may be any bytes.
        encoded = [(name, os.fsencode(value)) for name, value in headers]
        try:
            self._h2.send_headers(_STREAM, encoded)
            self._h2.send_data(_STREAM, body, end_stream=True)
        except h2.exceptions.ProtocolError:  # by the limits in its settings
            raise Http2Error("the server does not accept the request") from None
        while True:
            for event in self._events():
                match event:
                    case h2.events.ResponseReceived() | h2.events.TrailersReceived():
                        self.headers |= {
                            name.decode("latin-1"): _printable(value.decode("latin-1"))
                            for name, value in event.headers
                        }
                    case h2.events.DataReceived():
                        yield event.data
                        length = event.flow_controlled_length
                        self._h2.acknowledge_received_data(length, _STREAM)
                    case h2.events.StreamReset():
                        raise Http2Error("request reset by the server")
                    case h2.events.StreamEnded():
                        return

    def _events(self) -> list[h2.events.Event]:
        """Receive one frame."""
        try:
            return self._h2.receive_data(self._frame())
        except h2.exceptions.ProtocolError:
            cause = _NOT_HTTP2
        except EOFError:
            cause = ReasonKind.CLOSED.template
        except OSError as error:
            if isinstance(error, TimeoutError) and error.errno is None:
                raise  # the deadline; the kernel's timeout has a number
            cause = _cause(error)
        is_garbage = self._received and not self._has_settings
        raise Http2Error(_NOT_HTTP2 if is_garbage else cause)

    def _frame(self) -> bytes:
        """Read one frame (RFC 9113, 4.1), except a GOAWAY that lets the request finish.

        A stopping server sends one before its answer, and h2 accepts no frame after it.
        """
        header = self._read(_FRAME_HEADER)
        length, kind = int.from_bytes(header[:3], "big"), header[3]
        if length > _MAX_FRAME or not (self._has_settings or kind == _SETTINGS):
            raise Http2Error(_NOT_HTTP2)
        payload = self._read(length)
        self._has_settings = True
        if kind != _GOAWAY:
            return header + payload
        last_stream = int.from_bytes(payload[:4], "big") & 0x7FFFFFFF
        if last_stream < _STREAM:
            raise EOFError
        return b""

    def _read(self, count: int) -> bytes:
        while len(self._received) < count:
            self._received += self._receive()
        data, self._received = self._received[:count], self._received[count:]
        return data

    def _receive(self) -> bytes:
        """Send what is due, and receive: what arrived counts, even if the server is gone by now."""
        self._sock.settimeout(self.deadline.left())
        failure = None
        try:
            self._sock.sendall(self._h2.data_to_send())
        except ConnectionError as error:
            failure = error
        if received := self._sock.recv(_MAX_FRAME):
            return received
        raise failure or EOFError


def connect(
    server: Server,
    deadline: Deadline,
    tls: "ssl.SSLContext | None" = None,
    server_name: str | None = None,
    *,
    is_grpc: bool = False,
) -> Connection:
    """Connect to a server.

    Args:
        server: The server.
        deadline: The end of every wait.
        tls: For TLS.
        server_name: The name in the TLS handshake (SNI) and in the certificate; None for none.
        is_grpc: Whether to insist on HTTP/2 first, as gRPC does: ALPN, and the server's settings.

    Raises:
        Http2Error: If it fails.
        TimeoutError: At the deadline.
    """
    with ExitStack() as stack:
        sock = stack.enter_context(_connected(server, deadline))
        if tls is not None:
            sock = stack.enter_context(_secured(sock, deadline, tls, server_name))
            if is_grpc and sock.selected_alpn_protocol() != "h2":
                raise Http2Error("the server does not offer HTTP/2 over TLS (ALPN)")
        connection = Connection(sock, deadline)
        if is_grpc:
            connection.wait_for_settings()
        stack.pop_all()
    return connection


def _secured(
    sock: socket.socket, deadline: Deadline, tls: "ssl.SSLContext", server_name: str | None
) -> "ssl.SSLSocket":
    """Return the socket of a TLS connection, which takes the descriptor of this one."""
    try:
        # The name has no final dot (RFC 6066, section 3).
        name = None if server_name is None else server_name.removesuffix(".").encode("ascii")
        sock.settimeout(deadline.left())
        return tls.wrap_socket(sock, server_hostname=name)
    except TimeoutError:
        raise
    except OSError as error:
        cause = _cause(error)
    except ValueError:
        cause = f"{server_name!r} is not a host name"
    tls_failed = ReasonKind.TLS.template
    raise Http2Error(cause if cause.startswith(tls_failed) else f"{tls_failed}: {cause}")


def _connected(server: Server, deadline: Deadline) -> socket.socket:
    """Connect a socket, to each of the server's addresses in turn; the first failure counts."""
    failures = [ReasonKind.NAME_UNRESOLVED.template]
    found = _look_up(server, deadline)
    for number, (family, address) in enumerate(found):
        try:
            with ExitStack() as stack:
                sock = stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
                # An address that does not answer leaves time for the next one.
                sock.settimeout(deadline.left() / (len(found) - number))
                sock.connect(address)
                if server.address is not None:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                    for name, value in KEEPALIVE.items():
                        with suppress(AttributeError):  # of another system
                            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
                stack.pop_all()
                return sock
        except OSError as error:
            failures.append(_cause(error))
    deadline.left()
    raise Http2Error(failures[:2][-1])


def _look_up(server: Server, deadline: Deadline) -> list[tuple[socket.AddressFamily, Any]]:
    """Return the families and addresses of a server."""
    if server.address is None:
        return [(socket.AF_UNIX, server.path)]
    # For a text instead of bytes, Python would import IDNA.
    name, port = server.address.host.encode(), server.address.port
    with suppress(socket.gaierror):  # an IP address needs no name server
        return _addresses(name, port, socket.AI_NUMERICHOST)
    found: list[tuple[socket.AddressFamily, Any]] = []

    def run() -> None:
        with suppress(OSError):
            found.extend(_addresses(name, port))

    # A name server that does not answer blocks a thread for half a minute.
    thread = threading.Thread(target=run, daemon=True)
    try:
        thread.start()
    except RuntimeError:
        raise Http2Error(f"{ReasonKind.UNREACHABLE.template}: no thread can be started") from None
    thread.join(deadline.left())
    if thread.is_alive():
        raise Http2Error("no answer from the name server")
    return found


def _addresses(name: bytes, port: int, flags: int = 0) -> list[tuple[socket.AddressFamily, Any]]:
    found = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM, flags=flags)
    return [(family, address) for family, _, _, _, address in found]


def _printable(text: str) -> str:
    """Return a server's text without control characters, which could change the terminal."""
    return "".join(char if char.isprintable() else "?" for char in text)


def _cause(error: OSError) -> str:
    """Return the cause of a failure of a socket in a few words."""
    # An `ssl.SSLError` has more attributes. The module is imported only for TLS.
    reason = getattr(error, "reason", None) or ""
    if reason := getattr(error, "verify_message", reason.lower().replace("_", " ")):
        return f"{ReasonKind.TLS.template}: {reason}"
    match error:
        case ConnectionRefusedError():
            return ReasonKind.REFUSED.template
        case ConnectionResetError() | BrokenPipeError():
            return ReasonKind.RESET.template
    return f"{ReasonKind.UNREACHABLE.template}: {error.strerror or error}"

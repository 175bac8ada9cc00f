"""Servers for the checks: a gRPC one with fixed answers, and one of raw HTTP/2."""

import asyncio
import datetime as dt
import functools
import ssl
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import h2.config
import h2.connection
import h2.events
import trustme
from grpc_health.v1 import health_pb2, health_pb2_grpc

from ghealth.check.addresses import Server
from ghealth.check.call import Request
from ghealth.health import REASON_KEY

TIMEOUT = 20.0
"""Seconds for what is not a test of time."""

SERVING, NOT_SERVING = 1, 2
PATH = "/grpc.health.v1.Health/Check"

Failure = tuple[grpc.StatusCode, str]
Says = int | Failure
Answers = Callable[[h2.connection.H2Connection], None]


class Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]
    """Gives a fixed answer: a status, or a code with details.

    Args:
        says: A Check gets the first, a Watch all of them.
        reason: Sent as ghealth's reason with every answer.
    """

    def __init__(self, *says: Says, reason: str = "") -> None:
        self.says = list(says)
        self.trailers = ((REASON_KEY, reason),) if reason else ()
        self.metadata: dict[str, Any] = {}
        self.service = ""

    async def Check(self, request: Any, context: Any) -> Any:
        self.metadata = dict(context.invocation_metadata())
        self.service = request.service
        return await self._say(self.says[0], context)

    async def Watch(self, _request: Any, context: Any) -> AsyncGenerator[Any, None]:
        for says in self.says:
            yield await self._say(says, context)

    async def _say(self, says: Says, context: Any) -> Any:
        if isinstance(says, tuple):
            await context.abort(*says, self.trailers)
        context.set_trailing_metadata(self.trailers)
        return health_pb2.HealthCheckResponse(status=says)


@asynccontextmanager
async def serving(
    servicer: Health | None,
    credentials: grpc.ServerCredentials | None = None,
    address: str = "127.0.0.1:0",
) -> AsyncGenerator[int, None]:
    """Serve, and lend the port.

    Args:
        servicer: Answers; without one, nothing is implemented.
        credentials: For TLS.
        address: Where to listen.
    """
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    if servicer is not None:
        health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    if credentials is None:
        port = server.add_insecure_port(address)
    else:
        port = server.add_secure_port(address, credentials)
    await server.start()
    try:
        yield port
    finally:
        await server.stop(None)


def request(port: int, **fields: Any) -> Request:
    """Make a check of a server on this machine."""
    usual: dict[str, Any] = {
        "server": Server.parse(f"localhost:{port}"),
        "connect_timeout": TIMEOUT,
        "rpc_timeout": TIMEOUT,
        "user_agent": "test",
    }
    return Request(**(usual | fields))


@functools.cache
def authority() -> trustme.CA:
    return trustme.CA()


@functools.cache
def certificate(*, expired: bool = False) -> trustme.LeafCert:
    """Issue a certificate for localhost."""
    end = dt.datetime(2001, 1, 1, tzinfo=dt.UTC) if expired else None
    return authority().issue_cert("localhost", not_after=end)


def credentials(*, expired: bool = False, requires_client: bool = False) -> grpc.ServerCredentials:
    """Make a gRPC server's credentials."""
    cert = certificate(expired=expired)
    chain = b"".join(part.bytes() for part in cert.cert_chain_pems)
    return grpc.ssl_server_credentials(
        [(cert.private_key_pem.bytes(), chain)],
        root_certificates=authority().cert_pem.bytes(),
        require_client_auth=requires_client,
    )


def server_context(*, alpn: bool = True, expired: bool = True) -> ssl.SSLContext:
    """Make the context of a TLS server that is not gRPC's."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate(expired=expired).configure_cert(context)
    if alpn:
        context.set_alpn_protocols(["h2"])
    return context


def files(folder: Path) -> dict[str, Any]:
    """Write the authority and a client's pair, and return the arguments that name them."""
    cert = certificate()
    authority().cert_pem.write_to_path(str(folder / "ca.pem"))
    cert.private_key_pem.write_to_path(str(folder / "key.pem"))
    cert.cert_chain_pems[0].write_to_path(str(folder / "cert.pem"))
    names = {"ca_cert": "ca.pem", "client_cert": "cert.pem", "client_key": "key.pem"}
    return {argument: str(folder / name) for argument, name in names.items()}


class Http2Peer:
    """A server of raw frames with a fixed answer to each request; it records the last one.

    Args:
        answers: Answers a request.
        stays: Whether the connection stays open after that.
    """

    def __init__(self, answers: Answers, *, stays: bool = True) -> None:
        self._answers = answers
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
        writer.write(connection.data_to_send())
        while received := await reader.read(65536):
            for event in connection.receive_data(received):
                match event:
                    case h2.events.RequestReceived():
                        self.headers = [(bytes(n), bytes(v)) for n, v in event.headers or ()]
                    case h2.events.DataReceived():
                        self.body += event.data or b""
                    case h2.events.StreamEnded():
                        self._answers(connection)
                        writer.write(connection.data_to_send())
                        if not self._stays:
                            return
            writer.write(connection.data_to_send())


def framed(message: bytes, *, compressed: bool = False) -> bytes:
    """Frame a message as gRPC does."""
    return bytes([compressed]) + len(message).to_bytes(4, "big") + message


def responds(*pieces: bytes, code: str = "0", **more: str) -> Answers:
    """Answer with a body in pieces, and trailers."""

    def answer(connection: h2.connection.H2Connection) -> None:
        connection.send_headers(1, [(":status", "200"), ("content-type", "application/grpc")])
        for piece in pieces:
            connection.send_data(1, piece)
        fields = [("grpc-status", code), *((name.replace("_", "-"), more[name]) for name in more)]
        connection.send_headers(1, fields, end_stream=True)

    return answer


def trailers(*headers: tuple[str, str]) -> Answers:
    """Answer with headers alone."""
    return lambda connection: connection.send_headers(1, headers, end_stream=True)


def goaway_then(last_stream: int, *headers: tuple[str, str]) -> Answers:
    """Send a GOAWAY, as a server that is stopping does, and answer or not."""

    def answer(connection: h2.connection.H2Connection) -> None:
        goaway = b"\0\0\x08\x07\0\0\0\0\0" + last_stream.to_bytes(4, "big") + b"\0\0\0\0"
        if headers:
            connection.send_headers(1, headers, end_stream=True)
        connection._data_to_send[:0] = goaway

    return answer

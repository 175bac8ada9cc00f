"""Servers of raw HTTP/2 with fixed answers, and what a check of them needs."""

import asyncio
import datetime as dt
import ssl
from collections.abc import Callable

import h2.config
import h2.connection
import h2.events
import trustme

from tests.support.wire import framed

TIMEOUT = 20.0
"""Seconds for what is not a test of time."""

AUTHORITY = trustme.CA()
Answer = Callable[[h2.connection.H2Connection], None]


def server_context(
    *, alpn: bool = True, expired: bool = False, clients: bool = False
) -> ssl.SSLContext:
    """Make the context of a server for localhost."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    end = dt.datetime(2001, 1, 1, tzinfo=dt.UTC) if expired else None
    AUTHORITY.issue_cert("localhost", not_after=end).configure_cert(context)
    AUTHORITY.configure_trust(context)
    if alpn:
        context.set_alpn_protocols(["h2"])
    if clients:
        context.verify_mode = ssl.CERT_REQUIRED
    return context


class Peer:
    """A server of raw frames, which records the last request.

    Args:
        answers: Each answers the request of one connection; the last one is repeated.
    """

    def __init__(self, *answers: Answer) -> None:
        self._answers = answers
        self.headers: list[tuple[bytes, bytes]] = []
        self.body = b""
        self.connections = 0

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answer = self._answers[min(self.connections, len(self._answers) - 1)]
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
                        answer(connection)
                        writer.write(connection.data_to_send())
            writer.write(connection.data_to_send())


def sends(*parts: dict[str, str] | bytes) -> Answer:
    """Answer with headers and data, in this order."""

    def answer(connection: h2.connection.H2Connection) -> None:
        for part in parts:
            end = part is parts[-1]
            if isinstance(part, bytes):
                connection.send_data(1, part, end_stream=end)
            else:
                connection.send_headers(1, list(part.items()), end_stream=end)

    return answer


OK = {":status": "200", "content-type": "application/grpc"}


def responds(*pieces: bytes, code: str = "0", **trailers: str) -> Answer:
    """Answer with a body in pieces, and trailers."""
    more = {name.replace("_", "-"): text for name, text in trailers.items()}
    return sends(OK, *pieces, {"grpc-status": code, **more})


def status(number: int, **trailers: str) -> Answer:
    """Answer with a health status."""
    return responds(framed(bytes([8, number])), **trailers)


def resets_the_request(connection: h2.connection.H2Connection) -> None:
    connection.reset_stream(1)


def goaway_then(last_stream: int, answer: Answer) -> Answer:
    """Send a GOAWAY before the answer, as a server that is stopping does."""

    def answer_after_it(connection: h2.connection.H2Connection) -> None:
        answer(connection)
        goaway = b"\0\0\x08\x07\0\0\0\0\0" + last_stream.to_bytes(4, "big") + b"\0\0\0\0"
        connection._data_to_send[:0] = goaway

    return answer_after_it

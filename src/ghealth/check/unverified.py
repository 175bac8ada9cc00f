"""A check over TLS that does not verify the certificate, which Python's gRPC cannot do."""

import asyncio
import base64
import gzip
import zlib
from collections.abc import AsyncGenerator, Mapping
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from typing import Final
from urllib.parse import unquote

from google.protobuf.message import DecodeError

from ghealth.check import http2
from ghealth.check.certificates import Tls
from ghealth.check.question import (
    DEADLINE_EXCEEDED,
    INTERNAL,
    MALFORMED,
    SERVICE_PATH,
    UNAVAILABLE,
    UNKNOWN,
    Method,
    NoConnectionError,
    Question,
    Reply,
    status_of,
)
from ghealth.health import REASON_KEY

RECONNECT_INTERVAL: Final = 1.0
"""Seconds between attempts to connect, about the same as gRPC's."""

_PREFIX: Final = 5
"""Bytes before each message: whether it is compressed, and its length (gRPC over HTTP2)."""

_MAX_MESSAGE: Final = 65_536
_MAX_TIMEOUT_MS: Final = 99_999_999
"""The largest number that a `grpc-timeout` may have."""


class UnverifiedClient:
    """Asks over a TLS socket, on a new connection each time.

    Args:
        question: The question.
        tls: How it uses TLS.
        stack: Closes the connections.
    """

    def __init__(self, question: Question, tls: Tls, stack: AsyncExitStack) -> None:
        self._question = question
        self._tls = tls.context()
        self._stack = stack
        self._connection: http2.Connection

    async def connect(self) -> None:
        """Connect to the server within the question's timeout.

        Raises:
            NoConnectionError: If that fails.
        """
        cause = ""
        try:
            async with asyncio.timeout(self._question.connect_timeout):
                while True:
                    try:
                        return await self._connect()
                    except http2.Http2Error as error:
                        cause = str(error)
                        await asyncio.sleep(RECONNECT_INTERVAL)
        except TimeoutError:
            raise NoConnectionError(cause) from None

    async def _connect(self) -> None:
        await self._stack.aclose()
        target = self._question.target
        self._connection = await self._stack.enter_async_context(
            http2.connection(target, self._tls, target.host)
        )
        if not self._connection.is_negotiated:
            raise http2.Http2Error("the server does not offer HTTP/2 over TLS (ALPN)")
        await self._connection.ready()

    async def answers(self, method: Method) -> AsyncGenerator[Reply, None]:
        """Ask, once connected.

        Args:
            method: Check yields one answer; Watch yields one for each message, and one for an
                end that is an error.
        """
        headers, body = self._request(method)
        statuses = []
        try:
            async with asyncio.timeout(self._question.rpc_timeout if method == "Check" else None):
                async with aclosing(self._connection.exchange(headers, body)) as exchange:
                    async for status in _statuses(exchange):
                        if method == "Watch":
                            yield Reply(0, status=status)
                        statuses.append(status)
        except TimeoutError:
            yield Reply(DEADLINE_EXCEEDED)
        except http2.Http2Error as error:
            yield Reply(UNAVAILABLE, str(error))
        except (DecodeError, ValueError, OSError, EOFError, zlib.error):
            yield Reply(INTERNAL, MALFORMED)
        else:
            end = _end(self._connection.headers)
            if end.code:
                yield end
            elif method == "Check":
                yield _only(statuses, end.reason)

    def _request(self, method: Method) -> tuple[list[tuple[str, str]], bytes]:
        """Return the headers and the body."""
        question = self._question
        message = gzip.compress(question.message()) if question.gzip else question.message()
        headers = [
            (":method", "POST"),
            (":scheme", "https"),
            (":path", f"{SERVICE_PATH}/{method}"),
            (":authority", question.target.authority),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
            # A `grpc-` word means that this client reads the message (GHEALTH_STATUS_CALLERS).
            ("user-agent", f"{question.user_agent} grpc-h2".strip()),
            ("grpc-accept-encoding", "identity,gzip"),
        ]
        if question.gzip:
            headers.append(("grpc-encoding", "gzip"))
        if method == "Check":
            milliseconds = min(int(question.rpc_timeout * 1000) or 1, _MAX_TIMEOUT_MS)
            headers.append(("grpc-timeout", f"{milliseconds}m"))
        for name, value in question.metadata():
            encoded = base64.b64encode(value.encode()).decode() if name.endswith("-bin") else value
            headers.append((name, encoded))
        return headers, bytes([question.gzip]) + len(message).to_bytes(4, "big") + message


async def _statuses(exchange: AsyncGenerator[bytes, None]) -> AsyncGenerator[int, None]:
    """Parse the messages in a response's body."""
    buffer = b""
    async for data in exchange:
        buffer += data
        while len(buffer) >= _PREFIX:
            length = int.from_bytes(buffer[1:_PREFIX], "big")
            if length > _MAX_MESSAGE:
                raise ValueError
            if len(buffer) < _PREFIX + length:
                break
            message = buffer[_PREFIX : _PREFIX + length]
            if buffer[0]:
                message = gzip.decompress(message)
            buffer = buffer[_PREFIX + length :]
            yield status_of(message)


def _end(headers: Mapping[str, str]) -> Reply:
    """Return the answer in the trailers."""
    code = headers.get("grpc-status", "")
    if not (code.isascii() and code.isdigit()):
        return Reply(UNKNOWN, f"HTTP status {headers.get(':status')} without a gRPC status")
    details = unquote(headers.get("grpc-message", ""))
    return Reply(int(code), details, reason=headers.get(REASON_KEY, ""))


def _only(statuses: list[int], reason: str) -> Reply:
    """Return the answer with its message, of which there must be exactly one."""
    if len(statuses) != 1:
        return Reply(INTERNAL, f"{len(statuses)} messages instead of one")
    return Reply(0, status=statuses[0], reason=reason)


@asynccontextmanager
async def unverified_client(question: Question, tls: Tls) -> AsyncGenerator[UnverifiedClient, None]:
    """Prepare a client for a question.

    Args:
        question: The question.
        tls: How it uses TLS.
    """
    async with AsyncExitStack() as stack:
        yield UnverifiedClient(question, tls, stack)

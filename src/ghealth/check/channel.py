"""A question over a gRPC channel."""

import asyncio
import re
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any, Final

import grpc
from google.protobuf.message import DecodeError

from ghealth.check.question import (
    INTERNAL,
    MALFORMED,
    SERVICE_PATH,
    Method,
    NoConnectionError,
    Question,
    Reply,
    status_of,
)
from ghealth.health import REASON_KEY

_OPTIONS: Final = (
    # Do not use HTTP_PROXY for this machine.
    ("grpc.enable_http_proxy", 0),
    # So that a watch reconnects within a second or two; gRPC's back-off grows to 120 s.
    ("grpc.initial_reconnect_backoff_ms", 1_000),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),
)
_TLS_FAILURE: Final = re.compile("Tls handshake failed.*OPENSSL_internal:")
_LAST_ERROR_TIMEOUT: Final = 0.1
"""Seconds to get the cause of a failed connection; a channel that has it answers at once."""


class ChannelClient:
    """Asks over a gRPC channel.

    Args:
        question: The question.
        channel: A channel to the server.
    """

    def __init__(self, question: Question, channel: grpc.aio.Channel) -> None:
        self._question = question
        self._channel = channel

    async def connect(self) -> None:
        """Connect to the server within the question's timeout.

        Raises:
            NoConnectionError: If that fails.
        """
        ready = asyncio.ensure_future(self._channel.channel_ready())
        connected, _ = await asyncio.wait((ready,), timeout=self._question.connect_timeout)
        ready.cancel()
        if not connected:
            raise NoConnectionError(await self._last_error())

    async def _last_error(self) -> str:
        """Return the error of a call that does not wait for a connection."""
        unary: grpc.aio.UnaryUnaryMultiCallable[bytes, Any]
        unary = self._channel.unary_unary(f"{SERVICE_PATH}/Check")
        return _cause(await unary(b"", timeout=_LAST_ERROR_TIMEOUT).details() or "")

    async def answers(self, method: Method) -> AsyncGenerator[Reply, None]:
        """Ask, once connected.

        Args:
            method: Check yields one answer; Watch yields one for each message, and one for an
                end that is an error.
        """
        request = self._question.message()
        metadata = [
            (name, value.encode() if name.endswith("-bin") else value)
            for name, value in self._question.metadata()
        ]
        path = f"{SERVICE_PATH}/{method}"
        try:
            if method == "Watch":
                stream: grpc.aio.UnaryStreamMultiCallable[bytes, Any]
                stream = self._channel.unary_stream(path)
                async for reply in stream(request, metadata=metadata):
                    yield Reply(0, status=status_of(reply))
                return
            unary: grpc.aio.UnaryUnaryMultiCallable[bytes, Any]
            unary = self._channel.unary_unary(path)
            call = unary(request, metadata=metadata, timeout=self._question.rpc_timeout)
            reply = await call
            reason = _reason(await call.trailing_metadata())
            yield Reply(0, status=status_of(reply), reason=reason)
        except grpc.aio.AioRpcError as error:
            code: int = error.code().value[0]
            yield Reply(code, error.details() or "", reason=_reason(error.trailing_metadata()))
        except DecodeError:
            yield Reply(INTERNAL, MALFORMED)


def _cause(details: str) -> str:
    """Return the cause from gRPC's text, without its prefixes."""
    _, found, cause = details.rpartition("last error: ")
    if not found:
        return ""
    cause = _TLS_FAILURE.sub("TLS handshake failed: ", cause)
    return cause.removeprefix("UNKNOWN: ").removesuffix(": OK")


def _reason(trailers: Any) -> str:
    return next((str(value) for key, value in trailers or () if key == REASON_KEY), "")


@asynccontextmanager
async def channel_client(question: Question) -> AsyncGenerator[ChannelClient, None]:
    """Open a channel for a question.

    Args:
        question: The question.
    """
    options = [*_OPTIONS, ("grpc.primary_user_agent", question.user_agent)]
    compression = grpc.Compression.Gzip if question.gzip else None
    uri, tls = question.target.uri, question.tls
    if tls is None:
        channel = grpc.aio.insecure_channel(uri, options, compression)
    else:
        if tls.server_name:
            options.append(("grpc.ssl_target_name_override", tls.server_name))
        credentials = grpc.ssl_channel_credentials(tls.roots(), *tls.client_pair())
        channel = grpc.aio.secure_channel(uri, credentials, options, compression)
    async with channel:
        yield ChannelClient(question, channel)

"""What `ghealth check` does: ask a server, say what it said, and tell it by an exit code."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import IntEnum
from typing import Final

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from ghealth import __version__, reasons
from ghealth.status import Status


class ExitCode(IntEnum):
    """What a check ends with: the codes of grpc-health-probe."""

    SERVING = 0
    BAD_ARGUMENTS = 1
    NO_CONNECTION = 2
    RPC_FAILED = 3
    NOT_SERVING = 4


@dataclass(frozen=True, slots=True)
class Finding:
    """What one question came to.

    Args:
        code: The exit code it stands for.
        text: One line for a person.
    """

    code: ExitCode
    text: str


@dataclass(frozen=True, slots=True)
class Question:
    """What to ask whom.

    Args:
        addr: `host:port` of the server.
        service: The service's name, empty for the server as a whole.
        connect_timeout: Seconds for the connection.
        rpc_timeout: Seconds for the answer.
    """

    addr: str
    service: str
    connect_timeout: float
    rpc_timeout: float


RPC_TIMEOUT: Final = 1.0
"""Seconds for the answer unless the user says otherwise, as for grpc-health-probe."""

_OPTIONS: Final = (
    # HTTP_PROXY is not for a question to one's own machine.
    ("grpc.enable_http_proxy", 0),
    ("grpc.primary_user_agent", f"ghealth/{__version__}"),
    # A watch sees a server that is back within a second or two; gRPC's own back-off grows to 120 s.
    ("grpc.initial_reconnect_backoff_ms", 1_000),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),
)


async def check(question: Question) -> Finding:
    """Ask once.

    Args:
        question: What to ask whom.
    """
    async with grpc.aio.insecure_channel(question.addr, _OPTIONS) as channel:
        if not await _connects(channel, question):
            return _no_connection(question)
        try:
            reply = await health_pb2_grpc.HealthStub(channel).Check(
                _request(question), timeout=question.rpc_timeout
            )
        except grpc.aio.AioRpcError as error:
            return _failure(question, error)
        return _said(reply.status)


async def watch(
    question: Question, *, pause: Callable[[], Awaitable[None]]
) -> AsyncGenerator[Finding, None]:
    """Follow the answers, connecting anew whenever the server goes away.

    Args:
        question: What to ask whom; its `rpc_timeout` does not apply.
        pause: Waits before each new try.

    Yields:
        Each finding that differs from the one before.
    """
    told = None
    async with grpc.aio.insecure_channel(question.addr, _OPTIONS) as channel:
        while True:
            async for finding in _watch_once(channel, question):
                if finding != told:
                    told = finding
                    yield finding
            await pause()


async def _watch_once(
    channel: grpc.aio.Channel, question: Question
) -> AsyncGenerator[Finding, None]:
    if not await _connects(channel, question):
        yield _no_connection(question)
        return
    try:
        async for reply in health_pb2_grpc.HealthStub(channel).Watch(_request(question)):
            yield _said(reply.status)
    except grpc.aio.AioRpcError as error:
        yield _failure(question, error)


async def _connects(channel: grpc.aio.Channel, question: Question) -> bool:
    ready = asyncio.create_task(channel.channel_ready())
    connected, _ = await asyncio.wait((ready,), timeout=question.connect_timeout)
    ready.cancel()
    return bool(connected)


def _request(question: Question) -> health_pb2.HealthCheckRequest:
    return health_pb2.HealthCheckRequest(service=question.service)


def timed(finding: Finding) -> str:
    """Put the time of day before a finding.

    Args:
        finding: What was found just now.
    """
    return f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} {finding.text}"


def _said(number: int) -> Finding:
    if number == Status.SERVING:
        return Finding(ExitCode.SERVING, "status: SERVING")
    name = Status(number).name if number in set(Status) else str(number)
    return Finding(ExitCode.NOT_SERVING, f'service unhealthy (responded with "{name}")')


def _no_connection(question: Question) -> Finding:
    return Finding(
        ExitCode.NO_CONNECTION,
        f'failed to connect to "{question.addr}" within {question.connect_timeout:g} s',
    )


def _failure(question: Question, error: grpc.aio.AioRpcError) -> Finding:
    code, details = error.code(), error.details() or ""
    if code is grpc.StatusCode.UNAVAILABLE and reasons.is_known(details):
        return Finding(
            ExitCode.NOT_SERVING, f'service unhealthy (responded with "UNAVAILABLE": {details})'
        )
    hint = {
        grpc.StatusCode.UNIMPLEMENTED: "this server does not implement grpc.health.v1.Health",
        grpc.StatusCode.DEADLINE_EXCEEDED: f"no answer within {question.rpc_timeout:g} s",
        grpc.StatusCode.NOT_FOUND: f'the server knows no service "{question.service}"',
    }.get(code, details)
    return Finding(ExitCode.RPC_FAILED, f"health rpc failed: {code.name}: {hint}")

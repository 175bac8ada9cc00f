"""grpc.health.v1.Health, and the ALB's default path, over a Checker.

The only place that knows health.proto's messages.
"""

import asyncio
import contextlib
import functools
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, NoReturn, TypeVar

import grpc
from google.protobuf import descriptor_pb2
from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2

from ghealth import reasons
from ghealth.answers import Answer, Code
from ghealth.checker import Checker
from ghealth.logs import log_event
from ghealth.observer import Observer
from ghealth.status import GATEWAY, Health, Status
from ghealth.turns import Turns

SERVICE_NAME: Final = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name

ALB_SERVICE, ALB_METHOD = "AWS.ALB", "healthcheck"
"""What an ALB's gRPC target group calls unless it is told something better."""

ANSWER_AHEAD: Final = 0.05
"""Seconds before a caller's own deadline at which it is answered: after it, nothing arrives."""

MESSAGE_PATIENCE: Final = 1.0
"""Seconds that a caller has to send its message; then it is taken to mean the gateway."""

MESSAGE_TURNS: Final = 10
"""The turns in which that patience is counted."""

LIST_LIMIT: Final = 100
"""Most services in one List, as health.proto suggests (gRFC A90)."""

_log = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext[bytes, bytes]
Reply = TypeVar("Reply")
Message = TypeVar("Message")


_REPLIES: Final[dict[Status, bytes]] = {
    status: health_pb2.HealthCheckResponse(status=status.value).SerializeToString()
    for status in Status
}
_SERVING: Final = Answer(Code.OK, Status.SERVING, "")
_CODES: Final = {code: grpc.StatusCode[code.name] for code in Code}


def descriptions() -> tuple[descriptor_pb2.FileDescriptorProto, ...]:
    """Describe the services that are answered here, to those who ask by reflection.

    No file of AWS's describes its default path, so it is made up here: no fields in, none out.
    """
    health = descriptor_pb2.FileDescriptorProto.FromString(health_pb2.DESCRIPTOR.serialized_pb)
    package, _, name = ALB_SERVICE.partition(".")
    alb = descriptor_pb2.FileDescriptorProto(name="aws_alb.proto", package=package, syntax="proto3")
    alb.message_type.add(name="Empty")
    empty = f".{package}.Empty"
    alb.service.add(name=name).method.add(name=ALB_METHOD, input_type=empty, output_type=empty)
    return (health, alb)


class HealthServicer:
    """Answers Check, Watch and List, and the ALB's default path.

    Args:
        checker: Knows the health of every service.
        answer: Chooses what a Check tells, from a service's health and the caller's user agent.
        max_watches: Most watches open at once; further ones are refused, Check never is.
        observer: Told of each answer; it must not raise.
    """

    def __init__(
        self,
        checker: Checker,
        *,
        answer: Callable[[Health, str], Answer],
        max_watches: int,
        observer: Observer,
    ) -> None:
        self._checker = checker
        self._answer = answer
        self._max_watches = max_watches
        self._turns = Turns(MESSAGE_PATIENCE / MESSAGE_TURNS)
        self._observer = observer
        self._watches = 0
        self._watchers: Counter[str] = Counter()
        self._told_of_default_path = False

    @property
    def watchers(self) -> Mapping[str, int]:
        """How many watch each service now, by the names that they gave, known or not."""
        return self._watchers

    def handlers(self) -> tuple[grpc.GenericRpcHandler, ...]:
        """Tell gRPC what answers which path.

        Every method is registered as one that takes a stream of raw messages. It is the same on
        the wire, and the only way to answer every form of request: as a unary one, grpc.aio never
        answers a caller that sends no message, and a malformed message never gets here.
        """
        health: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
            "Check": grpc.stream_unary_rpc_method_handler(
                _answering("Check", self.check, self._observer)
            ),
            "Watch": grpc.stream_stream_rpc_method_handler(
                _answering("Watch", self.watch, self._observer)
            ),
            "List": grpc.stream_unary_rpc_method_handler(
                _answering("List", self.list, self._observer)
            ),
        }
        alb: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
            ALB_METHOD: grpc.stream_unary_rpc_method_handler(
                _answering(ALB_METHOD, self.default_path, self._observer)
            )
        }
        return (
            grpc.method_handlers_generic_handler(SERVICE_NAME, health),
            grpc.method_handlers_generic_handler(ALB_SERVICE, alb),
        )

    async def check(self, context: Context) -> bytes:
        """Answer one Check: NOT_FOUND for an unknown service (health.proto), else its status.

        Args:
            context: The call.
        """
        request = await _message(context, health_pb2.HealthCheckRequest.FromString, self._turns)
        health = await self._checker.check(request.service, patience=_patience(context))
        user_agent = _user_agent(context)
        if health.status is Status.SERVICE_UNKNOWN:
            answer = Answer(Code.NOT_FOUND, health.status, health.reason)
        elif health.status is Status.SERVING:
            answer = _SERVING  # to everyone, whatever the policy
        else:
            answer = self._answer(health, user_agent)
        has_body = answer.code is Code.OK
        told = answer.status.name if has_body else answer.code.name
        self._observer.answered("Check", user_agent, request.service, told, health.reason)
        if not has_body:
            await _abort(context, _CODES[answer.code], answer.reason)
        return _REPLIES[answer.status]

    async def watch(self, context: Context) -> None:
        """Answer one Watch: the status now, then each change.

        It ends only with the server: a client that does health checking retries a Watch that
        ended after a message at once, without back-off (gRFC A17).

        Args:
            context: The call.
        """
        if self._watches >= self._max_watches:
            raise _RefusedError(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many watches")
        self._watches += 1
        try:
            request = await _message(context, health_pb2.HealthCheckRequest.FromString, self._turns)
            await self._follow(request.service, context)
        finally:
            self._watches -= 1
        raise _RefusedError(grpc.StatusCode.UNAVAILABLE, reasons.DRAINING)

    async def _follow(self, service: str, context: Context) -> None:
        """Tell a watcher each change until the watches end."""
        user_agent = _user_agent(context)
        self._watchers[service] += 1
        try:
            watching = self._checker.watch(service, patience=_patience(context))
            async with contextlib.aclosing(watching):
                async for health in watching:
                    await context.write(_REPLIES[health.status])
                    self._observer.answered(
                        "Watch", user_agent, service, health.status.name, health.reason
                    )
        finally:
            self._watchers[service] -= 1
            if not self._watchers[service]:
                del self._watchers[service]

    async def list(self, context: Context) -> bytes:
        """Answer one List: every service with its status, a snapshot (gRFC A90).

        Args:
            context: The call.
        """
        await _message(context, health_pb2.HealthListRequest.FromString, self._turns)
        services = self._checker.services
        if len(services) > LIST_LIMIT:
            raise _RefusedError(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many services to list")
        patience = _patience(context)
        healths = await asyncio.gather(
            *(self._checker.check(service, patience=patience) for service in services)
        )
        reply: bytes = health_pb2.HealthListResponse(
            statuses={
                service: health_pb2.HealthCheckResponse(status=health.status.value)
                for service, health in zip(services, healths, strict=True)
            }
        ).SerializeToString()
        self._observer.answered("List", _user_agent(context), None, "OK", "")
        return reply

    async def default_path(self, context: Context) -> bytes:
        """Make the ALB's defaults honest: path `/AWS.ALB/healthcheck`, matcher 12.

        Any gRPC server answers 12 (UNIMPLEMENTED) to a path that it does not know, so a target
        group left at its defaults can never fail. Here it is 12 when the gateway is ready and
        14 (UNAVAILABLE) when it is not, whatever the answer policy says.

        Args:
            context: The call; its message, if any, is not read.
        """
        if not self._told_of_default_path:
            self._told_of_default_path = True
            log_event(
                _log,
                logging.WARNING,
                "default_path_asked",
                f"somebody asks on the ALB's default path /{ALB_SERVICE}/{ALB_METHOD}: give the "
                f"target group the path /{SERVICE_NAME}/Check and the matcher 0",
            )
        health = await self._checker.check(GATEWAY, patience=_patience(context))
        serving = health.status is Status.SERVING
        code = grpc.StatusCode.UNIMPLEMENTED if serving else grpc.StatusCode.UNAVAILABLE
        self._observer.answered(ALB_METHOD, _user_agent(context), GATEWAY, code.name, health.reason)
        return await _abort(context, code, health.reason)


class _RefusedError(Exception):
    """A call ends with a code that no service's health is the reason for.

    Args:
        code: The gRPC status code.
        reason: Its `grpc-message`.
    """

    def __init__(self, code: grpc.StatusCode, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


def _answering(
    name: str, method: Callable[[Context], Awaitable[Reply]], observer: Observer
) -> Callable[[object, Context], Awaitable[Reply]]:
    """Turn a bug into an answer that everyone reads as not serving, and into a line in the log."""

    async def refuse(context: Context, code: grpc.StatusCode, reason: str) -> NoReturn:
        observer.answered(name, _user_agent(context), None, code.name, reason)
        await _abort(context, code, reason)

    @functools.wraps(method)
    async def answer(_requests: object, context: Context) -> Reply:
        try:
            return await method(context)
        except grpc.aio.AbortError:
            raise
        except grpc.aio.InternalError:
            # gRPC could not send or receive: the caller is gone. End as a cancelled call does.
            raise asyncio.CancelledError from None
        except _RefusedError as refused:
            await refuse(context, refused.code, refused.reason)
        except Exception:
            _log.exception("answering failed", extra={"event": "internal_error"})
            await refuse(context, grpc.StatusCode.UNAVAILABLE, reasons.INTERNAL_ERROR)

    return answer


async def _abort(context: Context, code: grpc.StatusCode, reason: str) -> NoReturn:
    """End a call with trailers alone: set_code() and a return would send an empty message too."""
    await context.abort(code, reason)


def _user_agent(context: Context) -> str:
    """Tell the caller's user agent, empty if it has none."""
    metadata = context.invocation_metadata() or ()
    return " ".join(str(value) for name, value in metadata if name == "user-agent")


def _patience(context: Context) -> float | None:
    """Tell the seconds until the caller must be answered, None where it set no deadline."""
    left = context.time_remaining()
    return None if left is None else max(0.0, left - ANSWER_AHEAD)


async def _message(context: Context, parse: Callable[[bytes], Message], turns: Turns) -> Message:
    """Read the caller's message; one that does not come reads as an empty one.

    One that may still come when the caller's own deadline ends reads as nothing: it could be about
    any service, so the answer is not-serving. Otherwise patience is counted in turns: what came
    while this process did not run is there, and gRPC's threads need a moment to hand it over.
    """
    patience = _patience(context)
    hurried = patience is not None and patience < MESSAGE_PATIENCE
    try:
        if hurried:
            async with asyncio.timeout(patience):
                raw = await context.read()
        else:
            raw = await turns.wait(context.read(), MESSAGE_TURNS)
    except TimeoutError:
        raw = b""
        if hurried:
            raise _RefusedError(grpc.StatusCode.UNAVAILABLE, reasons.CALLER_LEFT_NO_TIME) from None
    try:
        return parse(raw if isinstance(raw, bytes) else b"")
    except DecodeError:
        raise _RefusedError(grpc.StatusCode.INVALID_ARGUMENT, "malformed message") from None

"""Answers every call on the gRPC port: grpc.health.v1.Health, and all other paths.

Only this module and reflection use the protobuf messages.
"""

import asyncio
import contextlib
import functools
import logging
from collections import Counter
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterator,
    Mapping,
)
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import grpc
from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2

from ghealth.checker import Checker
from ghealth.events import Method, RequestAnswered, Sink
from ghealth.health import (
    DEADLINE,
    DRAINING,
    GATEWAY,
    REASON_KEY,
    Answer,
    Code,
    Health,
    Reason,
    ReasonKind,
    Status,
)
from ghealth.printable import printable
from ghealth.server.guard import Guard, OpenCall
from ghealth.server.limits import MAX_HEADERS, MAX_WATCHES_PER_CONNECTION

SERVICE_NAME: Final = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name

DEADLINE_MARGIN: Final = 0.05
"""Seconds before a caller's deadline at which the answer is sent. It would not arrive later."""

MESSAGE_TIMEOUT: Final = 1.0
"""Seconds within which a caller must send its message."""

MAX_REFLECTIONS: Final = 16
"""Maximum number of open reflection streams."""

REFLECTION_TIMEOUT: Final = 10.0
"""Seconds after which a reflection stream without a new request is ended."""

LIST_LIMIT: Final = 100
"""Maximum number of services in the answer to a List (gRFC A90)."""

_MAX_REASON: Final = 200

_log = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext[Any, Any]
Message = TypeVar("Message")
Reflect = Callable[[AsyncIterator[Any], Context], AsyncIterator[Any]]
Handler = Callable[[object, Context], Awaitable[bytes]]

_MESSAGES: Final[dict[Status, bytes]] = {
    status: health_pb2.HealthCheckResponse(status=status.value).SerializeToString()
    for status in Status
}
_CODES: Final = {code: grpc.StatusCode[code.name] for code in Code}


@dataclass(slots=True)
class _Call:
    """An open call.

    Args:
        method: The method's name.
        path: The path that was called.
        context: gRPC's object for the call.
        user_agent: The caller's user agent, empty if it sent none.
        guarded: The guard's object for the call.
        service: The service name in the request; None until the request is read.
    """

    method: Method
    path: str
    context: Context
    user_agent: str
    guarded: OpenCall
    service: str | None = None

    def timeout(self) -> float | None:
        """Return the seconds until the answer must be sent; None if the caller has no deadline."""
        left = self.context.time_remaining()
        return None if left is None else max(0.0, left - DEADLINE_MARGIN)


_Reply = tuple[Answer, bytes]
"""An answer, and the message that is sent if its code is OK."""

TOO_LARGE: Final[_Reply] = (
    Answer(Code.RESOURCE_EXHAUSTED, reason=Reason(ReasonKind.HEADERS_TOO_LARGE)),
    b"",
)


class HealthServicer:
    """Answers Check, Watch and List, and every path that is not served.

    Args:
        checker: Checks the services.
        policy: Chooses the answer for a service that is not serving, from its health and the
            caller's user agent.
        max_watches: Maximum number of open watches.
        guard: Counts the calls.
        emit: Receives `RequestAnswered`; it must not raise.
    """

    def __init__(
        self,
        checker: Checker,
        *,
        policy: Callable[[Health, str], Answer],
        max_watches: int,
        guard: Guard,
        emit: Sink,
    ) -> None:
        self._checker = checker
        self._guard = guard
        self._policy = policy
        self._max_watches = max_watches
        self._emit = emit
        self._watches: Counter[str] = Counter()
        self._watches_by_peer: Counter[str] = Counter()
        self._reflections = 0
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._answering_now = 0
        # The event loop keeps only weak references to tasks.
        self._reads: set[asyncio.Task[Any]] = set()
        # Every method is registered with a stream of raw messages as its request. The bytes on the
        # wire are the same, and it is the only way to answer every form of request: for a method
        # with a single request, grpc.aio never answers a caller that sends no message, and does not
        # pass malformed messages to the handler.
        unary, stream = grpc.stream_unary_rpc_method_handler, grpc.stream_stream_rpc_method_handler
        check, watch, list_ = (f"/{SERVICE_NAME}/{name}" for name in ("Check", "Watch", "List"))
        self._methods: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            check: unary(self._answering("Check", check, self._check)),
            watch: stream(self._answering("Watch", watch, self._watch)),
            list_: unary(self._answering("List", list_, self._list)),
        }

    @property
    def watches(self) -> Mapping[str, int]:
        """The number of open watches by the service name in the request, unknown names too."""
        return self._watches

    @property
    def answering(self) -> bool:
        """Whether there are calls whose answer is not decided yet."""
        return self._answering_now > 0

    def end_streams(self) -> None:
        """End every Watch and reflection stream."""
        self._checker.end_watches()
        if not self._ended.done():
            self._ended.set_result(None)

    def handler(self, path: str) -> "grpc.RpcMethodHandler[Any, Any]":
        """Return the handler of a path.

        Args:
            path: The path. A path that is not served has a handler too.
        """
        return self._methods.get(path) or grpc.stream_unary_rpc_method_handler(
            self._answering("other", path, self._other)
        )

    def guarded(self, path: str, reflect: Reflect) -> Handler:
        """Wrap a reflection servicer.

        A load balancer that checks its path by mistake must not count a gateway that is not ready
        as healthy.

        Args:
            path: The path on which reflection is served.
            reflect: The reflection servicer's method.
        """
        return self._answering("reflection", path, functools.partial(self._reflect, reflect))

    async def _check(self, call: _Call) -> _Reply:
        """Answer a Check: NOT_FOUND for an unknown service (health.proto), or by the status."""
        request = await self._message(call, health_pb2.HealthCheckRequest.FromString)
        if isinstance(request, Answer):
            if request.reason == DEADLINE.reason:
                return self._policy(DEADLINE, call.user_agent), _MESSAGES[DEADLINE.status]
            return request, b""
        call.service = request.service
        health = await self._checker.check(request.service, timeout=call.timeout())
        if health.status is Status.SERVICE_UNKNOWN:
            return Answer(Code.NOT_FOUND, reason=health.reason), b""
        if health.serving:
            return Answer(Code.OK, health.status), _MESSAGES[health.status]
        return self._policy(health, call.user_agent), _MESSAGES[health.status]

    async def _list(self, call: _Call) -> _Reply:
        """Answer a List: every service with its current status (gRFC A90)."""
        request = await self._message(call, health_pb2.HealthListRequest.FromString)
        if isinstance(request, Answer):
            return request, b""
        if len(self._checker.services) > LIST_LIMIT:
            return Answer(Code.RESOURCE_EXHAUSTED, reason=Reason(ReasonKind.TOO_MANY_SERVICES)), b""
        healths = await self._checker.check_all(timeout=call.timeout())
        refusal = self._refusal(healths[GATEWAY], call)
        if refusal is not None:
            return refusal, b""
        message: bytes = health_pb2.HealthListResponse(
            statuses={
                name: health_pb2.HealthCheckResponse(status=health.status.value)
                for name, health in healths.items()
            }
        ).SerializeToString()
        return Answer(Code.OK), message

    async def _other(self, call: _Call) -> _Reply:
        """Answer a path that is not served: UNIMPLEMENTED (12) only while the gateway is ready.

        Other gRPC servers always answer 12, and an ALB's target group has 12 as its default
        matcher. So a target that is checked on such a path would always be healthy. The message is
        not read.
        """
        health = await self._checker.check(GATEWAY, timeout=call.timeout())
        code = Code.UNIMPLEMENTED if health.serving else Code.UNAVAILABLE
        return Answer(code, reason=health.reason), b""

    async def _watch(self, call: _Call) -> _Reply:
        """Answer a Watch: the current status, then each change.

        An accepted Watch ends only with the server: if a Watch ends after a message, gRPC clients
        retry it at once, without back-off (gRFC A17).
        """
        peer = call.context.peer()
        # Watches are counted before their messages are read. Otherwise, watches that arrive at the
        # same time could exceed the limit.
        if (
            self._watches_by_peer.total() >= self._max_watches
            or self._watches_by_peer[peer] >= MAX_WATCHES_PER_CONNECTION
        ):
            return Answer(Code.RESOURCE_EXHAUSTED, reason=Reason(ReasonKind.TOO_MANY_WATCHES)), b""
        call.guarded.is_watch = True
        with _counted(self._watches_by_peer, peer):
            request = await self._message(call, health_pb2.HealthCheckRequest.FromString)
            if isinstance(request, Answer):
                return request, b""
            call.service = request.service
            with _counted(self._watches, request.service):
                watching = self._checker.watch(request.service, timeout=call.timeout())
                async with contextlib.aclosing(watching):
                    async for health in watching:
                        await call.context.write(_MESSAGES[health.status])
                        self._answered(call, Answer(Code.OK, health.status, health.reason))
        return Answer(Code.UNAVAILABLE, reason=DRAINING.reason), b""

    async def _reflect(self, reflect: Reflect, call: _Call) -> _Reply:
        """Answer reflection: UNAVAILABLE if the caller could misread OK as a ready gateway."""
        if self._reflections >= MAX_REFLECTIONS:
            return Answer(Code.RESOURCE_EXHAUSTED, reason=Reason(ReasonKind.TOO_MANY_CALLS)), b""
        self._reflections += 1
        try:
            health = await self._checker.check(GATEWAY, timeout=call.timeout())
            refusal = self._refusal(health, call)
            if refusal is not None:
                return refusal, b""
            async for reply in reflect(self._requests(call), call.context):
                await call.context.write(reply)
            # The gateway's status may have changed while the stream was open.
            health = await self._checker.check(GATEWAY, timeout=call.timeout())
            refusal = self._refusal(health, call)
        except DecodeError:
            return Answer(Code.INVALID_ARGUMENT, reason=Reason(ReasonKind.MALFORMED)), b""
        finally:
            self._reflections -= 1
        return refusal or Answer(Code.OK), b""

    async def _requests(self, call: _Call) -> AsyncGenerator[Any, None]:
        """Yield the requests of a stream until it ends, times out, or the server stops."""
        while True:
            reading = self._reading(call.context)
            await asyncio.wait(
                (reading, self._ended),
                timeout=REFLECTION_TIMEOUT,
                return_when=asyncio.FIRST_COMPLETED,
            )
            if not reading.done() or reading.result() is grpc.aio.EOF:
                return
            yield reading.result()

    def _refusal(self, health: Health, call: _Call) -> Answer | None:
        """Return the policy's code if the caller could misread OK as a ready gateway, else None."""
        if health.serving:
            return None
        answer = self._policy(health, call.user_agent)
        return None if answer.code is Code.OK else answer

    async def _message(self, call: _Call, parse: Callable[[bytes], Message]) -> "Message | Answer":
        """Read and parse the caller's message, or return the answer to a caller that sent none.

        A caller that ends its request without a message counts as one that sent an empty message.
        """
        timeout = call.timeout()
        is_hurried = timeout is not None and timeout < MESSAGE_TIMEOUT
        reading = self._reading(call.context)
        await asyncio.wait((reading,), timeout=timeout if is_hurried else MESSAGE_TIMEOUT)
        if not reading.done():
            if is_hurried:
                return Answer(Code.UNAVAILABLE, reason=Reason(ReasonKind.DEADLINE))
            reason = Reason(ReasonKind.NO_MESSAGE, f"{MESSAGE_TIMEOUT:g} s")
            return Answer(Code.INVALID_ARGUMENT, reason=reason)
        raw = reading.result()
        try:
            return parse(b"" if raw is grpc.aio.EOF else raw)
        except DecodeError:
            return Answer(Code.INVALID_ARGUMENT, reason=Reason(ReasonKind.MALFORMED))

    def _reading(self, context: Context) -> "asyncio.Task[Any]":
        """Read a message in a task that is never cancelled.

        A cancelled read leaks 450 bytes in grpcio. Nothing awaits the task after the timeout, so
        its exception is retrieved when it ends.
        """
        reading = asyncio.ensure_future(context.read())
        self._reads.add(reading)
        reading.add_done_callback(self._read)
        return reading

    def _read(self, reading: "asyncio.Task[Any]") -> None:
        self._reads.discard(reading)
        if not reading.cancelled():
            reading.exception()  # asyncio logs an exception that is never retrieved

    def _answered(self, call: _Call, answer: Answer) -> None:
        event = RequestAnswered(
            method=call.method,
            path=call.path,
            user_agent=call.user_agent,
            service=call.service,
            answer=answer,
        )
        # The answer leaves first: the sinks need no time that a caller waits for.
        asyncio.get_running_loop().call_soon(self._emit, event)

    def _answering(
        self, method: Method, path: str, serve: Callable[[_Call], Awaitable[_Reply]]
    ) -> Handler:
        """Wrap a method, so that a bug is answered as "not serving" to every caller."""

        async def answer(_requests: object, context: Context) -> bytes:
            guarded = self._guard.enter(context.peer())
            # It counts until its answer is sent, which is later than the return of the handler.
            context.add_done_callback(lambda _: self._guard.leave(guarded))  # type: ignore[arg-type]
            user_agent, size = _headers(context, path)
            call = _Call(method, path, context, user_agent, guarded)
            self._answering_now += 1
            try:
                reply, message = TOO_LARGE if size > MAX_HEADERS else await serve(call)
                self._answered(call, reply)
                return await _finish(context, reply, message)
            except grpc.aio.AbortError:
                raise
            except grpc.aio.BaseError:
                # The caller has disconnected or the server has stopped, so no answer can be sent.
                # End like a cancelled call, because other exceptions would be logged.
                raise asyncio.CancelledError from None
            except Exception:
                _log.exception("answering failed", extra={"event": "internal_error"})
                failure = Answer(Code.UNAVAILABLE, reason=Reason(ReasonKind.INTERNAL_ERROR))
                self._answered(call, failure)
                return await _finish(context, failure, b"")
            finally:
                self._answering_now -= 1

        return answer


class AllPaths(grpc.GenericRpcHandler):
    """Finds the handler of every path. Register it after all other handlers.

    Args:
        servicer: Has a handler for every path.
    """

    def __init__(self, servicer: HealthServicer) -> None:
        self._servicer = servicer

    def service(
        self, handler_call_details: grpc.HandlerCallDetails
    ) -> "grpc.RpcMethodHandler[Any, Any]":
        """Return the handler of the path that is called."""
        return self._servicer.handler(handler_call_details.method)


async def _finish(context: Context, answer: Answer, message: bytes) -> bytes:
    """End a call: with the message if the code is OK, otherwise with trailers only.

    After set_code() and a return, gRPC would send an empty message with the code.
    """
    # With other characters in a trailer, gRPC would refuse to send the answer.
    reason = (
        "" if answer.reason is None else printable(str(answer.reason)[:_MAX_REASON], _MAX_REASON)
    )
    trailers = ((REASON_KEY, reason),) if reason else ()
    if answer.code is not Code.OK:
        await context.abort(_CODES[answer.code], reason, trailers)
    if trailers:
        context.set_trailing_metadata(trailers)
    return message


def _headers(context: Context, path: str) -> tuple[str, int]:
    """Return the caller's user agent, and the size of its headers as HTTP/2 defines it.

    gRPC refuses too large headers only when the client has acknowledged the limit. Of the
    pseudo-headers, grpc.aio shows only the path.
    """
    metadata = [(":path", path), *(context.invocation_metadata() or ())]
    user_agent = " ".join(str(value) for name, value in metadata if name == "user-agent")
    return user_agent, sum(32 + len(name) + len(value) for name, value in metadata)


@contextlib.contextmanager
def _counted(counter: Counter[str], key: str) -> Iterator[None]:
    """Count a key within a `with` block, and remove it when its count is 0 again."""
    counter[key] += 1
    try:
        yield
    finally:
        counter[key] -= 1
        if not counter[key]:
            del counter[key]

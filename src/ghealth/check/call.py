"""The gRPC health check: one Check, or all changes of a Watch (health.proto)."""

import base64
import math
import os
import re
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from ghealth.check import http2
from ghealth.check.addresses import Server
from ghealth.check.report import ExitCode, Report, code_name
from ghealth.durations import show_seconds
from ghealth.health import CHECK_PATH, DEADLINE, REASON_KEY, Code, Status

if TYPE_CHECKING:
    import ssl

Log = Callable[[str], None]

RECONNECT_INTERVAL: Final = 1.0
"""Seconds between connections, about the same as gRPC's first back-off."""

_ENOUGH: Final = 5.0
"""Seconds that are enough for ghealth's answer, whose probes take up to 3 s by default."""

_MAX_TIMEOUT_MS: Final = 99_999_999
"""The largest number that a `grpc-timeout` may have."""

_RESERVED_HEADERS: Final = frozenset(("content-type", "te", "user-agent")).union(
    f"grpc-{name}" for name in ("encoding", "message", "message-type", "status", "timeout")
)
"""The headers that grpc-go always sets itself."""

_PREFIX: Final = 5
"""Bytes before each message: whether it is compressed, and its length (gRPC over HTTP2)."""

_MAX_MESSAGE: Final = 65_536
_GZIP: Final = 31
"""zlib's number for the format of gzip."""

_MALFORMED: Final = "malformed message"
_VARINT_BITS: Final = 0x7F
_RESPONSE: Final = re.compile(rb"(?:\x08([\x80-\xff]{0,9}[\x00-\x7f]))*")
"""A HealthCheckResponse: field 1, a varint, of which the last one counts."""


class _CallError(Exception):
    """The request cannot be sent or the answer cannot be read; the message is the cause."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A health check.

    Args:
        server: The server.
        service: The service's name, empty for the server as a whole.
        connect_timeout: Seconds for the connection.
        rpc_timeout: Seconds for the answer.
        user_agent: The user agent, to which the name of this client is appended.
        headers: Names and values to send as metadata.
        gzip: Whether to compress the message.
        tls: For TLS.
        server_name: The name that the server's certificate must have; by default its host.
    """

    server: Server
    service: str = ""
    connect_timeout: float = 1.0
    rpc_timeout: float = 1.0
    user_agent: str
    headers: Sequence[tuple[str, str]] = ()
    gzip: bool = False
    tls: "ssl.SSLContext | None" = None
    server_name: str = ""


@dataclass(frozen=True, slots=True)
class _Reply:
    """The answer to a Check, or one of a Watch.

    Args:
        code: The gRPC status code, None without a connection.
        details: The text with the code, or why there is no connection.
        status: The status in the message, None if there is none.
        reason: ghealth's reason, empty if there is none.
    """

    code: int | None
    details: str = ""
    status: int | None = None
    reason: str = ""


def check(request: Request, log: Log = lambda _: None) -> Report:
    """Check once.

    Args:
        request: The request.
        log: Receives the steps.
    """
    (reply,) = _replies(request, "Check", log)
    return _report(request, reply)


def watch(request: Request, *, pause: Callable[[], None]) -> Iterator[Report]:
    """Follow the answers of a Watch, and connect again when the connection ends.

    Args:
        request: The request; its `rpc_timeout` applies only to the reason.
        pause: Waits before each new connection.

    Yields:
        Each report that differs from the one before.
    """
    last_sent = None
    while True:
        for reply in _replies(request, "Watch"):
            report = _report(request, reply)
            if reply.status == Status.NOT_SERVING:
                # A reason is in the trailers, which a Watch has only at its end.
                checked = check(request)
                if checked.keys["status"] == report.keys["status"]:
                    report = checked
            if report != last_sent:
                last_sent = report
                yield report
        pause()


def _replies(request: Request, method: str, log: Log = lambda _: None) -> Iterator[_Reply]:
    """Connect and call a method: one reply for Check; for Watch each message, and a bad end."""
    log(f"connecting to {request.server}")
    try:
        connection = _connect(request)
    except TimeoutError as error:
        yield _Reply(None, str(error))
        return
    log("connected")
    is_check, statuses = method == "Check", []
    connection.deadline = http2.Deadline(request.rpc_timeout if is_check else math.inf)
    with closing(connection):
        try:
            for message in _messages(connection, *_encoded(request, method)):
                statuses.append(_status(message))
                if not is_check:
                    yield _Reply(Code.OK, status=statuses[-1])
            end = _end(connection)
        except (_CallError, zlib.error) as error:
            end = _Reply(Code.INTERNAL, str(error))
        except TimeoutError:
            end = _Reply(Code.DEADLINE_EXCEEDED)
        except http2.Http2Error as error:
            end = _Reply(Code.UNAVAILABLE, str(error))
    log("answered")
    if end.code:
        yield end
    elif not statuses or (is_check and len(statuses) > 1):
        yield _Reply(Code.INTERNAL, f"{len(statuses)} messages instead of one")
    elif is_check:
        yield _Reply(Code.OK, status=statuses[0], reason=end.reason)


def _connect(request: Request) -> http2.Connection:
    """Connect within the request's timeout, with new attempts as gRPC makes them.

    Raises:
        TimeoutError: If that fails; the message is the last cause, empty if it is not known.
    """
    deadline, cause = http2.Deadline(request.connect_timeout), ""
    name = request.server_name or request.server.host
    try:
        while True:
            try:
                return http2.connect(request.server, deadline, request.tls, name, is_grpc=True)
            except http2.Http2Error as error:
                cause = str(error)
            time.sleep(min(RECONNECT_INTERVAL, deadline.left()))
    except TimeoutError:
        raise TimeoutError(cause) from None


def _encoded(request: Request, method: str) -> tuple[list[tuple[str, str]], bytes]:
    """Return the headers and the body of a call (gRPC over HTTP2, "Requests")."""
    message = _message(request.service)
    if request.gzip:
        message = zlib.compress(message, wbits=_GZIP)
    headers = [
        (":method", "POST"),
        (":scheme", "https" if request.tls else "http"),
        (":path", CHECK_PATH.replace("Check", method)),
        (":authority", request.server.authority),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
        # A `grpc-` word means that this client reads the message (GHEALTH_STATUS_CALLERS).
        ("user-agent", f"{request.user_agent} grpc-h2".strip()),
        ("grpc-accept-encoding", "identity,gzip"),
        ("grpc-encoding", "gzip" if request.gzip else "identity"),
        *_metadata(request.headers),
    ]
    if method == "Check":
        milliseconds = min(int(request.rpc_timeout * 1000) or 1, _MAX_TIMEOUT_MS)
        headers.append(("grpc-timeout", f"{milliseconds}m"))
    return headers, bytes([request.gzip]) + len(message).to_bytes(4, "big") + message


def _metadata(headers: Sequence[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """Yield headers as metadata; those that gRPC sets itself are left out, as by grpc-go."""
    for name, value in headers:
        key = name.lower()
        if key in _RESERVED_HEADERS or key.startswith(":"):
            continue
        if not re.fullmatch("[0-9a-z_.-]+", key):
            raise _CallError(f"{name!r} is not the name of a gRPC header")
        if key.endswith("-bin"):
            yield key, base64.b64encode(os.fsencode(value)).decode()
        elif re.fullmatch("[ -~]*", value):
            yield key, value
        else:
            raise _CallError(f"the value of header {name} is not printable ASCII")


def _message(service: str) -> bytes:
    """Encode a HealthCheckRequest: field 1, a string, is the service."""
    name = os.fsencode(service)
    try:
        name.decode()
    except UnicodeDecodeError:
        raise _CallError("the service's name is not UTF-8") from None
    length, encoded = len(name), b"\x0a"
    while length > _VARINT_BITS:  # a varint has 7 bits in each byte, the lowest first
        encoded += bytes([length & _VARINT_BITS | 0x80])
        length >>= 7
    return encoded + bytes([length]) + name if name else b""


def _messages(
    connection: http2.Connection, headers: Sequence[tuple[str, str]], body: bytes
) -> Iterator[bytes]:
    """Send a request, and yield the messages of the response."""
    buffer = b""
    for data in connection.exchange(headers, body):
        # Otherwise it is a page of a proxy.
        if connection.headers.get("content-type", "").startswith("application/grpc"):
            buffer += data
        while len(buffer) >= _PREFIX:
            length = int.from_bytes(buffer[1:_PREFIX], "big")
            if length > _MAX_MESSAGE:
                raise _CallError(_MALFORMED)
            if len(buffer) < _PREFIX + length:
                break
            is_compressed, message = buffer[0], buffer[_PREFIX : _PREFIX + length]
            buffer = buffer[_PREFIX + length :]
            if is_compressed:
                decoder = zlib.decompressobj(_GZIP)
                message = decoder.decompress(message, _MAX_MESSAGE)
                if not decoder.eof:
                    raise _CallError(_MALFORMED)
            yield message


def _status(message: bytes) -> int:
    """Decode the status in a HealthCheckResponse."""
    found = _RESPONSE.fullmatch(message)
    if not found:
        raise _CallError(_MALFORMED)
    return sum((byte & _VARINT_BITS) << 7 * place for place, byte in enumerate(found[1] or b""))


def _end(connection: http2.Connection) -> _Reply:
    """Return the answer in the trailers."""
    code, headers = connection.grpc_status, connection.headers
    if code is None:
        details = f"HTTP status {headers.get(':status')} without a gRPC status"
        return _Reply(Code.UNKNOWN, details)
    return _Reply(code, connection.grpc_message, reason=headers.get(REASON_KEY, ""))


def _report(request: Request, reply: _Reply) -> Report:
    status = None if reply.status is None else _status_name(reply.status)
    reason = (reply.details if reply.code is None else reply.reason) or None
    exit_code, text = _judged(request, reply, status, reason)
    keys = {
        "exit_code": exit_code.value,
        "conclusion": exit_code.name.lower().replace("_", " "),
        "address": str(request.server),
        "service": request.service,
        "status": status,
        "code": reply.code,
        "code_name": code_name(reply.code),
        "reason": reason,
        "text": text,
    }
    return Report(exit_code, text, keys)


def _judged(
    request: Request, reply: _Reply, status: str | None, reason: str | None
) -> tuple[ExitCode, str]:
    """Return the exit code and the text of a reply."""
    code, name = reply.code, code_name(reply.code) or str(reply.code)
    if code is None:
        text = f'failed to connect to "{request.server}" within {request.connect_timeout:g} s'
        return ExitCode.NO_CONNECTION, _joined(text, reason)
    if status == Status.SERVING.name:
        return ExitCode.SERVING, f"status: {status}"
    # From other servers, and from proxies before them, UNAVAILABLE does not mean not serving.
    if code and not (code == Code.UNAVAILABLE and reason):
        return ExitCode.RPC_FAILED, _joined("health rpc failed", name, _explained(request, reply))
    if not reason:
        return ExitCode.NOT_SERVING, f'service unhealthy (responded with "{status}")'
    if reason == str(DEADLINE.reason):
        timeout = request.rpc_timeout
        longer = show_seconds(max(_ENOUGH, 2 * timeout))
        reason = f"no answer before the deadline of {timeout:g} s; try --rpc-timeout {longer}"
    return ExitCode.NOT_SERVING, f"{status or name}: {reason}"


def _joined(*parts: str | None) -> str:
    return ": ".join(filter(None, parts))


def _explained(request: Request, reply: _Reply) -> str:
    match reply.code:
        case Code.UNIMPLEMENTED:
            return "this server does not implement grpc.health.v1.Health"
        case Code.DEADLINE_EXCEEDED:
            return f"no answer within {request.rpc_timeout:g} s"
        case Code.NOT_FOUND:
            return f'the server has no service "{request.service}"'
    return reply.details


def _status_name(number: int) -> str:
    return Status(number).name if number in list(Status) else str(number)

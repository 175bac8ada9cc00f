"""What an AWS ALB would conclude of a target: its own health check, replayed.

The request is the one captured from a real ALB (kamu-data/kamu-node#216), header for header; it is
sent by hand because no gRPC library sends a `host` in place of `:authority`, or lets one see the
trailers. Works against any gRPC server, so that people can find out how theirs is seen.
"""

import asyncio
import re
import time
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import unquote

import grpc
import h2.config
import h2.connection
import h2.events
import h2.exceptions

from ghealth import reasons
from ghealth.address import Address
from ghealth.matcher import Matcher

USER_AGENT: Final = "ELB-HealthChecker/2.0"
DEFAULT_PATH: Final = "/grpc.health.v1.Health/Check"
DEFAULT_MATCHER: Final = "0"
DEFAULT_TIMEOUT: Final = 5.0
"""Seconds, as for a target group (Elastic Load Balancing user guide, health check settings)."""

MISMATCH: Final = "Target.ResponseCodeMismatch: Health checks failed with these codes: [{}]"
TIMED_OUT: Final = "Target.Timeout: Request timed out"
FAILED: Final = "Target.FailedHealthChecks: Health checks failed"

_CODE: Final = re.compile("[0-9]{1,4}")
_FRAME_HEADER: Final = 9
_LARGEST_FRAME: Final = 16_384
_GOAWAY: Final = 7
_EMPTY_MESSAGE: Final = b"\0\0\0\0\0"
_NOT_SERVING_MESSAGE: Final = b"\0\0\0\0\2\x08\2"
_NAMES: Final = {code.value[0]: code.name for code in grpc.StatusCode}
_UNIMPLEMENTED, _UNAVAILABLE = 12, 14


@dataclass(frozen=True, slots=True)
class Conclusion:
    """What the ALB would make of one check.

    Args:
        healthy: The verdict.
        text: What was asked and answered, the reason in the console's words, and the verdict.
        warnings: Why the verdict may be worth nothing.
    """

    healthy: bool
    text: str
    warnings: tuple[str, ...]


@dataclass(slots=True)
class _Reply:
    """What came back, as far as an ALB looks at it, and the message, at which it does not look."""

    headers: dict[str, str] = field(default_factory=dict)
    message: bytes = b""
    complete: bool = False


async def check(address: Address, path: str, matcher: Matcher, seconds: float) -> Conclusion:
    """Make one health check as an ALB makes it, and conclude what it concludes.

    Args:
        address: The target.
        path: The target group's health check path.
        matcher: Its success codes.
        seconds: Its timeout.
    """
    started = time.monotonic()
    reply = _Reply()
    problem = FAILED
    try:
        async with asyncio.timeout(seconds):
            await _exchange(address, path, reply)
    except TimeoutError:
        problem = TIMED_OUT
    except (OSError, EOFError, UnicodeError, h2.exceptions.ProtocolError):
        # A connection that fails and an answer that is no HTTP/2 are one to an ALB.
        pass
    took = f"{(time.monotonic() - started) * 1000:.0f} ms"

    text = reply.headers.get("grpc-status", "") if reply.complete else ""
    code = int(text) if _CODE.fullmatch(text) and reply.headers.get(":status") == "200" else None
    message = unquote(reply.headers.get("grpc-message", ""))
    healthy = code is not None and code in matcher
    lines = [f"POST {path} to {address} as {USER_AGENT}, success codes {matcher}"]
    if code is None:
        lines.append(f"no gRPC status in {took}")
        lines.append(problem)
    else:
        lines.append(f"grpc-status {code} ({_NAMES.get(code, 'unknown')}) {message!r} in {took}")
        if not healthy:
            lines.append(MISMATCH.format(code))
    lines.append("healthy" if healthy else "unhealthy")
    return Conclusion(healthy, "\n".join(lines), _warnings(matcher, code, message, reply.message))


def _warnings(
    matcher: Matcher, code: int | None, grpc_message: str, message: bytes
) -> tuple[str, ...]:
    """Tell why a pass would mean nothing."""
    if all(known in matcher for known in _NAMES):
        return (f"the matcher {matcher} passes any answer: this check can hardly fail",)
    found = []
    if _UNAVAILABLE in matcher:
        found.append(
            f"the matcher {matcher} passes 14 (UNAVAILABLE), the answer of a target that is not "
            "ready"
        )
    if code == _UNIMPLEMENTED and code in matcher and not reasons.is_known(grpc_message):
        found.append(
            "any gRPC server answers 12 (UNIMPLEMENTED) to a path that it does not know: with "
            f"this path and matcher the check can never fail; use {DEFAULT_PATH} and matcher 0"
        )
    if code == 0 and code in matcher and message == _NOT_SERVING_MESSAGE:
        found.append(
            "the target says NOT_SERVING in its message, which an ALB does not read: it needs a "
            "server that answers with a code, such as ghealth"
        )
    return tuple(found)


async def _exchange(address: Address, path: str, reply: _Reply) -> None:
    """Send the ALB's request on a connection of its own and take what comes back."""
    reader, writer = await asyncio.open_connection(address.host, address.port)
    connection = h2.connection.H2Connection(
        # The ALB's own request has no :authority, which h2 would not let out.
        h2.config.H2Configuration(validate_outbound_headers=False)
    )
    try:
        connection.initiate_connection()
        connection.send_headers(
            1,
            [
                (":method", "POST"),
                (":scheme", "http"),
                (":path", path),
                ("host", "AWSALB"),
                ("content-length", str(len(_EMPTY_MESSAGE))),
                ("content-type", "application/grpc"),
                ("te", "trailers"),
                ("user-agent", USER_AGENT),
                ("accept-encoding", "gzip, compressed"),
            ],
        )
        connection.send_data(1, _EMPTY_MESSAGE, end_stream=True)
        writer.write(connection.data_to_send())
        while not reply.complete:
            for event in connection.receive_data(await _frame(reader)):
                _take(event, reply)
            writer.write(connection.data_to_send())
    finally:
        writer.close()


async def _frame(reader: asyncio.StreamReader) -> bytes:
    """Read one HTTP/2 frame (RFC 9113, 4.1), but for a GOAWAY that lets our request finish.

    A server that is stopping sends one before its answer, and h2 takes nothing more after it.
    """
    header = await reader.readexactly(_FRAME_HEADER)
    length = int.from_bytes(header[:3], "big")
    if length > _LARGEST_FRAME:
        raise ConnectionResetError  # no HTTP/2 at all
    payload = await reader.readexactly(length)
    if header[3] != _GOAWAY:
        return header + payload
    last_stream = int.from_bytes(payload[:4], "big") & 0x7FFFFFFF
    if not last_stream:
        raise ConnectionResetError
    return b""


def _take(event: h2.events.Event, reply: _Reply) -> None:
    match event:
        case h2.events.ResponseReceived() | h2.events.TrailersReceived():
            reply.headers |= {
                name.decode("latin-1"): value.decode("latin-1")
                for name, value in event.headers or ()
                if isinstance(name, bytes) and isinstance(value, bytes)
            }
        case h2.events.DataReceived():
            reply.message += event.data or b""
        case h2.events.StreamEnded():
            reply.complete = True
        case h2.events.StreamReset() if not reply.complete:
            raise ConnectionResetError

"""The health check of an AWS ALB: what it would conclude about a target.

The request was captured from a real ALB (kamu-data/kamu-node#216), header for header; only the
user agent has a suffix. It works against any gRPC server.
"""

import asyncio
import re
import time
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote

from ghealth.check import http2
from ghealth.check.certificates import Tls
from ghealth.check.report import CODE_NAMES, ExitCode, Report, code_name
from ghealth.check.target import Target
from ghealth.health import ALB_USER_AGENT, CHECK_PATH, REASON_KEY, REPLAY_SUFFIX, Code
from ghealth.matcher import GRPC_CODES, Matcher

USER_AGENT: Final = ALB_USER_AGENT + REPLAY_SUFFIX
DEFAULT_MATCHER: Final = Matcher.parse("0", GRPC_CODES)
DEFAULT_TIMEOUT: Final = 5.0
"""Seconds, as for a target group (Elastic Load Balancing user guide, health check settings)."""

MISMATCH: Final = "Target.ResponseCodeMismatch: Health checks failed with these codes: [{}]"
TIMED_OUT: Final = "Target.Timeout: Request timed out"
FAILED: Final = "Target.FailedHealthChecks: Health checks failed"

_CODE: Final = re.compile("[0-9]{1,4}")
_EMPTY_MESSAGE: Final = b"\0\0\0\0\0"
_NOT_SERVING_MESSAGE: Final = b"\0\0\0\0\2\x08\2"


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetGroup:
    """A target group's health check settings.

    Args:
        path: The path.
        matcher: The success codes.
        timeout: Seconds for the whole check.
        tls: Whether the protocol of its health checks is HTTPS.
    """

    path: str = CHECK_PATH
    matcher: Matcher = DEFAULT_MATCHER
    timeout: float = DEFAULT_TIMEOUT
    tls: bool = False


@dataclass(slots=True)
class _Response:
    """The response.

    Args:
        problem: The console's reason for an answer without a gRPC status.
        failure: How the connection or the request failed; empty if it did not.
        code: The gRPC status code, None if there is none.
        grpc_message: The text with the code.
        from_ghealth: Whether ghealth sent it.
        message: The beginning of the message, which an ALB does not read.
    """

    problem: str = FAILED
    failure: str = ""
    code: int | None = None
    grpc_message: str = ""
    from_ghealth: bool = False
    message: bytes = b""


async def check(target: Target, group: TargetGroup) -> Report:
    """Send one health check as an ALB does, and report what the ALB concludes.

    Args:
        target: The target.
        group: The settings of its target group.
    """
    started = time.monotonic()
    response = _Response()
    connected = False
    try:
        async with asyncio.timeout(group.timeout):
            context = Tls(verify=False).context() if group.tls else None
            # An ALB sends no server name (SNI) and does not verify the certificate.
            async with http2.connection(target, context) as connection:
                connected = True
                await _exchange(connection, group, response)
    except TimeoutError:
        missing = "answer" if connected else "connection"
        response.problem = TIMED_OUT
        response.failure = f"no {missing} within {group.timeout:g} s"
    except http2.Http2Error as error:
        response.failure = str(error)
    return _report(target, group, response, time.monotonic() - started)


async def _exchange(connection: http2.Connection, group: TargetGroup, response: _Response) -> None:
    headers = [
        (":method", "POST"),
        (":scheme", "https" if group.tls else "http"),
        (":path", group.path),
        ("host", "AWSALB"),
        ("content-length", str(len(_EMPTY_MESSAGE))),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
        ("user-agent", USER_AGENT),
        ("accept-encoding", "gzip, compressed"),
    ]
    async with aclosing(connection.exchange(headers, _EMPTY_MESSAGE)) as exchange:
        async for data in exchange:
            if len(response.message) <= len(_NOT_SERVING_MESSAGE):
                response.message += data
    received = connection.headers
    status, code = received.get(":status"), received.get("grpc-status", "")
    if status != "200":
        response.failure = f"HTTP status {status}"
    elif not _CODE.fullmatch(code):
        response.failure = "an answer without a gRPC status"
    else:
        response.code = int(code)
        response.grpc_message = unquote(received.get("grpc-message", ""))
        response.from_ghealth = REASON_KEY in received


def _report(target: Target, group: TargetGroup, response: _Response, seconds: float) -> Report:
    code, took = response.code, f"{seconds * 1000:.0f} ms"
    healthy = code is not None and code in group.matcher
    lines = [f"POST {group.path} to {target} as {USER_AGENT}, success codes {group.matcher}"]
    reason = None
    if code is None:
        reason = response.problem
        lines.append(f"no gRPC status: {response.failure} (after {took})")
    else:
        name = code_name(code) or "unknown"
        lines.append(f"grpc-status {code} ({name}) {response.grpc_message!r} in {took}")
        if not healthy:
            reason = MISMATCH.format(code)
    conclusion = "healthy" if healthy else "unhealthy"
    lines += [*([reason] if reason else []), conclusion]
    warnings = _warnings(group, response)
    exit_code = ExitCode.SERVING if healthy else ExitCode.NOT_SERVING
    keys = {
        "exit_code": exit_code.value,
        "conclusion": conclusion,
        "address": str(target),
        "path": group.path,
        "matcher": str(group.matcher),
        "tls": group.tls,
        "code": code,
        "code_name": None if code is None else code_name(code),
        "grpc_message": response.grpc_message or None,
        "failure": response.failure or None,
        "reason": reason,
        "seconds": round(seconds, 6),
        "warnings": warnings,
    }
    return Report(exit_code, "\n".join(lines), keys, warnings)


def _warnings(group: TargetGroup, response: _Response) -> tuple[str, ...]:
    """Return why a passed check would have no meaning."""
    matcher, code = group.matcher, response.code
    if all(known in matcher for known in range(len(CODE_NAMES))):
        return (
            f"the matcher {matcher} accepts every code: the check fails only if there is no answer",
        )
    found = []
    if Code.UNAVAILABLE in matcher:
        found.append(
            f"the matcher {matcher} accepts 14 (UNAVAILABLE), the answer of a target that is not "
            "ready"
        )
    if code == Code.UNIMPLEMENTED and code in matcher and not response.from_ghealth:
        found.append(
            "any gRPC server answers 12 (UNIMPLEMENTED) to a path that it does not know: with "
            f"this path and matcher the check can never fail; use {CHECK_PATH} and matcher 0"
        )
    if code == Code.OK and code in matcher and response.message == _NOT_SERVING_MESSAGE:
        found.append(
            "the message is NOT_SERVING, which an ALB does not read: it needs a server that "
            "answers with a code, such as ghealth"
        )
    return tuple(found)

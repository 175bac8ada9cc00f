"""The health check of an AWS ALB: what it would conclude about a target.

The request was captured from a real ALB (kamu-data/kamu-node#216), header for header; only the
user agent has a suffix. It works against any gRPC server.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from ghealth.check import http2
from ghealth.check.addresses import Server
from ghealth.check.report import ExitCode, Report, code_name
from ghealth.health import ALB_USER_AGENT, CHECK_PATH, REASON_KEY, REPLAY_SUFFIX, Code
from ghealth.matcher import GRPC_CODES, Matcher

if TYPE_CHECKING:
    import ssl

USER_AGENT: Final = ALB_USER_AGENT + REPLAY_SUFFIX
DEFAULT_MATCHER: Final = Matcher.parse("0", GRPC_CODES)
DEFAULT_TIMEOUT: Final = 5.0
"""Seconds, as for a target group (Elastic Load Balancing user guide, health check settings)."""

MISMATCH: Final = "Target.ResponseCodeMismatch: Health checks failed with these codes: [{}]"
TIMED_OUT: Final = "Target.Timeout: Request timed out"
FAILED: Final = "Target.FailedHealthChecks: Health checks failed"

_EMPTY_MESSAGE: Final = b"\0\0\0\0\0"
_NOT_SERVING_MESSAGE: Final = b"\0\0\0\0\2\x08\2"


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetGroup:
    """A target group's health check settings.

    Args:
        path: The path.
        matcher: The success codes.
        timeout: Seconds for the whole check.
        tls: For health checks by HTTPS. An ALB does not verify the certificate.
    """

    path: str = CHECK_PATH
    matcher: Matcher = DEFAULT_MATCHER
    timeout: float = DEFAULT_TIMEOUT
    tls: "ssl.SSLContext | None" = None


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


def check(
    server: Server, group: TargetGroup, log: Callable[[str], None] = lambda _: None
) -> Report:
    """Send one health check as an ALB does, and report what the ALB concludes.

    Args:
        server: The target.
        group: The settings of its target group.
        log: Receives the steps.
    """
    started = time.monotonic()
    response, missing = _Response(), "connection"
    log(f"connecting to {server}")
    try:
        # An ALB sends no server name (SNI).
        with closing(http2.connect(server, http2.Deadline(group.timeout), group.tls)) as connection:
            missing = "answer"
            log("connected")
            _exchange(connection, group, response)
            log("answered")
    except TimeoutError:
        response.problem = TIMED_OUT
        response.failure = f"no {missing} within {group.timeout:g} s"
    except http2.Http2Error as error:
        response.failure = str(error)
    return _report(server, group, response, time.monotonic() - started)


def _exchange(connection: http2.Connection, group: TargetGroup, response: _Response) -> None:
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
    for data in connection.exchange(headers, _EMPTY_MESSAGE):
        if len(response.message) <= len(_NOT_SERVING_MESSAGE):
            response.message += data
    status = connection.headers.get(":status")
    if status != "200":
        response.failure = f"HTTP status {status}"
    elif connection.grpc_status is None:
        response.failure = "an answer without a gRPC status"
    else:
        response.code = connection.grpc_status
        response.grpc_message = connection.grpc_message
        response.from_ghealth = REASON_KEY in connection.headers


def _report(server: Server, group: TargetGroup, response: _Response, seconds: float) -> Report:
    code, took = response.code, f"{seconds * 1000:.0f} ms"
    healthy = code is not None and code in group.matcher
    lines = [f"POST {group.path} to {server} as {USER_AGENT}, success codes {group.matcher}"]
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
    warnings = tuple(_warnings(group, response))
    exit_code = ExitCode.SERVING if healthy else ExitCode.NOT_SERVING
    keys = {
        "exit_code": exit_code.value,
        "conclusion": conclusion,
        "address": str(server),
        "path": group.path,
        "matcher": str(group.matcher),
        "tls": group.tls is not None,
        "code": code,
        "code_name": code_name(code),
        "grpc_message": response.grpc_message or None,
        "failure": response.failure or None,
        "reason": reason,
        "seconds": round(seconds, 6),
        "warnings": warnings,
    }
    return Report(exit_code, "\n".join(lines), keys, warnings)


def _warnings(group: TargetGroup, response: _Response) -> Iterator[str]:
    """Yield why the conclusion has no meaning, or that the path is not served."""
    matcher, code = group.matcher, response.code
    if all(known in matcher for known in Code):
        yield (
            f"the matcher {matcher} accepts every code: the check fails only if there is no answer"
        )
        return
    if Code.UNAVAILABLE in matcher:
        yield (
            f"the matcher {matcher} accepts 14 (UNAVAILABLE), the answer of a target that is not "
            "ready"
        )
    if code == Code.UNIMPLEMENTED and code not in matcher:
        advice = "" if group.path == CHECK_PATH else f"; use {CHECK_PATH} and matcher 0"
        yield f"the server does not serve the path {group.path}{advice}"
    elif code == Code.UNIMPLEMENTED and not response.from_ghealth:
        yield (
            "any gRPC server answers 12 (UNIMPLEMENTED) to a path that it does not know: with "
            f"this path and matcher the check can never fail; use {CHECK_PATH} and matcher 0"
        )
    if code == Code.OK and code in matcher and response.message == _NOT_SERVING_MESSAGE:
        yield (
            "the message is NOT_SERVING, which an ALB does not read: it needs a server that "
            "answers with a code, such as ghealth"
        )

"""The state of a service, the reason for it, and the answer that follows from it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, IntEnum, StrEnum
from typing import Final, Literal, Protocol

GATEWAY: Final = ""
"""The service name of the gateway. health.proto requires this name of every server."""

LIVENESS: Final = "liveness"
"""The service name of the ghealth process itself; its status does not depend on a probe."""

REASON_KEY: Final = "ghealth-reason"
"""The trailing metadata key that carries the text of a reason. Only ghealth sends it."""

CHECK_PATH: Final = "/grpc.health.v1.Health/Check"
"""The path that a target group should have."""

ALB_USER_AGENT: Final = "ELB-HealthChecker/2.0"
"""The user agent of an AWS ALB's health checks."""

REPLAY_SUFFIX: Final = " ghealth-check"
"""What `ghealth check --as alb` appends to the load balancer's user agent."""


class Status(IntEnum):
    """The ServingStatus of health.proto, with the same names and numbers."""

    UNKNOWN = 0
    SERVING = 1
    NOT_SERVING = 2
    SERVICE_UNKNOWN = 3


class Result(StrEnum):
    """The outcome of a probe in one word: the values of the metrics' label `result`."""

    OK = "ok"
    STATUS = "status"
    TIMEOUT = "timeout"
    REFUSED = "refused"
    RESET = "reset"
    PROTOCOL = "protocol"
    TLS = "tls"
    DNS = "dns"
    ERROR = "error"


class ReasonKind(Enum):
    """Kinds of reasons: the text, with a place for the detail, and the result for the metrics.

    The texts are part of the public contract. None of them carries an exception's text, a URL or
    a stack, because reasons are sent to clients that are not authenticated.
    """

    ANSWERED = "gateway answered {}", Result.STATUS
    TIMED_OUT = "no answer within {}", Result.TIMEOUT
    REFUSED = "connection refused", Result.REFUSED
    RESET = "connection reset", Result.RESET
    CLOSED = "connection closed without an answer", Result.RESET
    UNREACHABLE = "cannot connect", Result.ERROR
    NOT_HTTP = "answer is not HTTP", Result.PROTOCOL
    NAME_UNRESOLVED = "name does not resolve", Result.DNS
    CERTIFICATE = "certificate does not verify", Result.TLS
    CERTIFICATE_EXPIRED = "certificate has expired", Result.TLS
    CERTIFICATE_AUTHORITY = "certificate signed by unknown authority", Result.TLS
    CERTIFICATE_NAME = "certificate is for another name", Result.TLS
    TLS = "TLS failed", Result.TLS
    TLS_RESET = "TLS connection reset", Result.RESET
    INTERNAL_ERROR = "internal error", Result.ERROR
    CUSTOM = "{}", Result.STATUS
    """The text comes from a `Probe` outside this package."""

    ALIVE = "ghealth is running", Result.OK
    DRAINING = "draining", Result.ERROR
    DEADLINE = "no answer before the caller's deadline", Result.TIMEOUT
    UNKNOWN_SERVICE = "unknown service", Result.ERROR
    MALFORMED = "malformed message", Result.ERROR
    NO_MESSAGE = "no message within {}", Result.ERROR
    HEADERS_TOO_LARGE = "headers too large", Result.ERROR
    TOO_MANY_WATCHES = "too many watches", Result.ERROR
    TOO_MANY_CALLS = "too many calls", Result.ERROR
    TOO_MANY_SERVICES = "too many services to list", Result.ERROR

    def __init__(self, template: str, result: Result) -> None:
        self.template = template
        self.result = result


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a service has its status, or why a call was refused.

    Args:
        kind: What happened.
        detail: The part of the text that varies, such as a status code.
        position: The number of the probe, and of how many, for a service with several probes.
    """

    kind: ReasonKind
    detail: str = ""
    position: tuple[int, int] | None = None

    def __str__(self) -> str:
        text = self.kind.template.format(self.detail)
        if self.position is None:
            return text
        number, total = self.position
        return f"probe {number} of {total}: {text}"


@dataclass(frozen=True, slots=True)
class Health:
    """The state of one service.

    Args:
        status: The status that callers get.
        reason: Why.
    """

    status: Status
    reason: Reason

    @property
    def serving(self) -> bool:
        """Whether the status is SERVING."""
        return self.status is Status.SERVING


ALIVE: Final = Health(Status.SERVING, Reason(ReasonKind.ALIVE))
DRAINING: Final = Health(Status.NOT_SERVING, Reason(ReasonKind.DRAINING))
DEADLINE: Final = Health(Status.NOT_SERVING, Reason(ReasonKind.DEADLINE))
INTERNAL_ERROR: Final = Health(Status.NOT_SERVING, Reason(ReasonKind.INTERNAL_ERROR))
UNKNOWN_SERVICE: Final = Health(Status.SERVICE_UNKNOWN, Reason(ReasonKind.UNKNOWN_SERVICE))

PolicyName = Literal["auto", "status", "code"]


class Code(IntEnum):
    """The gRPC status codes (grpc/grpc, doc/statuscodes.md)."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to one call.

    Args:
        code: The gRPC status code.
        status: The status in the message; None for an answer without one.
        reason: Why; None where there is nothing to explain.
    """

    code: Code
    status: Status | None = None
    reason: Reason | None = None

    @property
    def name(self) -> str:
        """The status in the message by its name, otherwise the code by its name."""
        return self.code.name if self.status is None else self.status.name

    @property
    def good(self) -> bool:
        """Whether the answer means ready.

        UNIMPLEMENTED does: unknown paths get it only while the gateway is ready.
        """
        if self.code is Code.OK:
            return self.status in (None, Status.SERVING)
        return self.code is Code.UNIMPLEMENTED


class AnswerPolicy(Protocol):
    """Chooses the answer for a service that ghealth knows and that is not serving.

    health.proto answers `OK` with `NOT_SERVING` in the message. An AWS ALB looks only at the
    status code and counts that as healthy. A status code other than OK is unhealthy to every
    caller, so callers that are not known to read the message get a code.
    """

    def __call__(self, health: Health, user_agent: str, status_callers: Sequence[str]) -> Answer:
        """Choose the answer.

        Args:
            health: The health of the service.
            user_agent: The caller's user agent, empty if it sent none.
            status_callers: Prefixes of user-agent words of callers that read the message.
        """
        ...


def _status(
    health: Health,
    user_agent: str,  # noqa: ARG001 - the same for every caller
    status_callers: Sequence[str],  # noqa: ARG001
) -> Answer:
    """Send the status in the message, as health.proto defines it."""
    return Answer(Code.OK, health.status, health.reason)


def _code(
    health: Health,
    user_agent: str,  # noqa: ARG001 - the same for every caller
    status_callers: Sequence[str],  # noqa: ARG001
) -> Answer:
    """Send UNAVAILABLE.

    Never UNIMPLEMENTED, which the ALB's default matcher counts as healthy, and never CANCELLED,
    after which Traefik does not check again.
    """
    return Answer(Code.UNAVAILABLE, reason=health.reason)


def _auto(health: Health, user_agent: str, status_callers: Sequence[str]) -> Answer:
    """Send the status to callers that are known to read the message, the code to all others.

    gRPC client libraries have a word `grpc-LANGUAGE/…` in their user agent (gRPC over HTTP2,
    "User Agents").
    """
    reads_message = any(word.startswith(tuple(status_callers)) for word in user_agent.split())
    return (_status if reads_message else _code)(health, user_agent, status_callers)


POLICIES: Final[Mapping[PolicyName, AnswerPolicy]] = {
    "auto": _auto,
    "status": _status,
    "code": _code,
}

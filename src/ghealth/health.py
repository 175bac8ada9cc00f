"""The state of a service and the reason for it."""

from dataclasses import dataclass
from enum import Enum, IntEnum, StrEnum
from typing import Final

GATEWAY: Final = ""
"""The service name of the gateway. health.proto requires this name of every server."""

LIVENESS: Final = "liveness"
"""The service name of the ghealth process itself; its status does not depend on a probe."""

REASON_KEY: Final = "ghealth-reason"
"""The trailing metadata key that carries the text of a reason. Only ghealth sends it."""


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
    TLS = "TLS handshake failed", Result.TLS
    INTERNAL_ERROR = "internal error", Result.ERROR
    CUSTOM = "{}", Result.STATUS
    """The text comes from a `Probe` outside this package."""

    ALIVE = "ghealth is running", Result.OK
    DRAINING = "draining", Result.ERROR
    DEADLINE = "no answer before the caller's deadline", Result.TIMEOUT
    UNKNOWN_SERVICE = "unknown service", Result.ERROR
    MALFORMED = "malformed message", Result.ERROR
    NO_MESSAGE = "no message within {}", Result.ERROR
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

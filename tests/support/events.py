"""Events with the usual values, for the sinks and what shows them."""

from typing import Final

from ghealth.events import (
    ConnectionsCut,
    CutReason,
    Method,
    ProbeCompleted,
    RequestAnswered,
    StatusChanged,
)
from ghealth.health import (
    CHECK_PATH,
    GATEWAY,
    UNKNOWN_SERVICE,
    Answer,
    Code,
    Health,
    Reason,
    ReasonKind,
    Status,
)
from tests.support.fakes import answered

ALB: Final = "ELB-HealthChecker/2.0"
KUBELET: Final = "kube-probe/1.34"
GRPC: Final = "grpc-go/1.70.0"

UP: Final = Health(Status.SERVING, answered(200))
DOWN: Final = Health(Status.NOT_SERVING, answered(503))
REFUSED: Final = Health(Status.NOT_SERVING, Reason(ReasonKind.REFUSED))

OK: Final = Answer(Code.OK)
SERVING: Final = Answer(Code.OK, Status.SERVING)
UNAVAILABLE: Final = Answer(Code.UNAVAILABLE, reason=DOWN.reason)
UNIMPLEMENTED: Final = Answer(Code.UNIMPLEMENTED)
NOT_FOUND: Final = Answer(Code.NOT_FOUND, reason=UNKNOWN_SERVICE.reason)


def probed(health: Health, seconds: float = 0.25, service: str = GATEWAY) -> ProbeCompleted:
    """Complete a probe."""
    return ProbeCompleted(service=service, health=health, seconds=seconds)


def changed(
    previous: Health | None, health: Health, held: float = 1.0, service: str = GATEWAY
) -> StatusChanged:
    """Change a status or its reason."""
    return StatusChanged(service=service, previous=previous, health=health, held_seconds=held)


def request(
    answer: Answer = SERVING,
    user_agent: str = ALB,
    method: Method = "Check",
    *,
    service: str | None = GATEWAY,
    path: str = CHECK_PATH,
) -> RequestAnswered:
    """Answer a request."""
    return RequestAnswered(
        method=method, path=path, user_agent=user_agent, service=service, answer=answer
    )


def cut(count: int = 1, address: str = "10.0.0.1", reason: CutReason = "calls") -> ConnectionsCut:
    """Cut connections of a client."""
    return ConnectionsCut(address=address, count=count, reason=reason)

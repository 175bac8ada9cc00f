"""Kinds of callers by user agent, and what each concludes from an answer."""

import functools
from enum import StrEnum
from typing import Any, Final

from ghealth.events import Method, RequestAnswered
from ghealth.health import REPLAY_SUFFIX, Answer, Code, Status
from ghealth.printable import printable

MAX_REASON: Final = 200
"""Maximum number of characters of a reason that are shown."""


class Caller(StrEnum):
    """The kinds of callers: few and fixed, so that no caller can add a label to the metrics."""

    ALB = "alb"
    ALB_REPLAY = "alb (ghealth check)"
    KUBELET = "kubelet"
    ENVOY = "envoy"
    PROBE = "grpc-health-probe"
    GRPC = "grpc"
    OTHER = "other"


_PREFIXES: Final = (
    # grpc-health-probe, the kubelet and other clients of a gRPC library also have the library's
    # word in their user agent.
    ("ELB-HealthChecker/", Caller.ALB),
    ("kube-probe/", Caller.KUBELET),
    ("Envoy/HC", Caller.ENVOY),
    ("grpc_health_probe", Caller.PROBE),
    ("grpc-health-probe", Caller.PROBE),
)


@functools.lru_cache(maxsize=32)
def caller_of(user_agent: str) -> Caller:
    """Return the kind of a caller.

    Args:
        user_agent: As the caller sent it.
    """
    for prefix, caller in _PREFIXES:
        if user_agent.startswith(prefix):
            is_replay = caller is Caller.ALB and REPLAY_SUFFIX in user_agent
            return Caller.ALB_REPLAY if is_replay else caller
    if user_agent.startswith("grpc-") or " grpc-" in user_agent:
        return Caller.GRPC
    return Caller.OTHER


def _alb(answer: Answer) -> str:
    """Return what an ALB concludes: it looks only at the code."""
    match answer.code:
        case Code.UNIMPLEMENTED:
            return "matcher 12: healthy, 0: unhealthy"
        case Code.OK if answer.status is Status.NOT_SERVING:
            return "healthy: it looks at the code, which is 0"
        case Code.OK:
            return "healthy, with matcher 0"
        case _:
            return "unhealthy"


def _grpc_health_probe(answer: Answer) -> str:
    if answer.code is Code.OK:
        return "exit 0" if answer.status is Status.SERVING else "exit 4"
    return "exit 3"


_BY_MESSAGE: Final = {
    Caller.KUBELET: ("success", "failure"),
    Caller.ENVOY: ("healthy", "unhealthy"),
    Caller.GRPC: ("serving", "not serving"),
    Caller.OTHER: ("healthy", "unhealthy, if it looks at the code"),
}
"""What callers that read the message conclude from SERVING and from anything else."""


def conclusion(caller: Caller, method: Method, answer: Answer) -> str:
    """Return what a caller concludes from an answer, as docs/callers.md describes it.

    Args:
        caller: The kind of the caller.
        method: The method that it called.
        answer: What it got.
    """
    if method in ("List", "reflection") and answer.code is Code.OK:
        return "a list"
    if method == "other" or caller in (Caller.ALB, Caller.ALB_REPLAY):
        return _alb(answer)
    if caller is Caller.PROBE:
        return _grpc_health_probe(answer)
    good, bad = _BY_MESSAGE[caller]
    return good if answer.status is Status.SERVING else bad


def describe(event: RequestAnswered) -> dict[str, Any]:
    """Return an answer and its request as values for JSON, texts from callers printable."""
    caller, answer = caller_of(event.user_agent), event.answer
    return {
        "caller": caller,
        "user_agent": printable(event.user_agent),
        "method": event.method,
        "path": printable(event.path),
        "service": event.service,
        "answer": answer.name,
        "good": answer.good,
        "reason": "" if answer.reason is None else printable(str(answer.reason), MAX_REASON),
        "concludes": conclusion(caller, event.method, answer),
    }

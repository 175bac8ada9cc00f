"""Who asks, told by the user agent, and what each of them concludes from an answer."""

import functools
from collections.abc import Callable
from typing import Final

LONGEST_USER_AGENT: Final = 80
"""Characters of a user agent that are kept."""


# Plain texts, since the hash of an enum's member is a call, and answers are counted by these.
ALB: Final = "alb"
KUBELET: Final = "kubelet"
ENVOY: Final = "envoy"
PROBE: Final = "grpc-health-probe"
GRPC: Final = "grpc"
OTHER: Final = "other"

CALLERS: Final = (ALB, KUBELET, ENVOY, PROBE, GRPC, OTHER)
"""The kinds of callers: few and fixed, so that no caller can add one."""

_BEGINNINGS: Final = (
    # grpc-health-probe, the kubelet and every client of a gRPC library add the library's own word.
    ("ELB-HealthChecker/", ALB),
    ("kube-probe/", KUBELET),
    ("Envoy/HC", ENVOY),
    ("grpc_health_probe", PROBE),
    ("grpc-health-probe", PROBE),
)


@functools.lru_cache(maxsize=32)
def caller_of(user_agent: str) -> str:
    """Tell the kind of a caller, one of `CALLERS`.

    Args:
        user_agent: As it sent it.
    """
    for beginning, caller in _BEGINNINGS:
        if user_agent.startswith(beginning):
            return caller
    if user_agent.startswith("grpc-") or " grpc-" in user_agent:
        return GRPC
    return OTHER


def presentable(user_agent: str) -> str:
    """Render a user agent so that it can be shown: printable ASCII, of bounded length.

    Args:
        user_agent: As the caller sent it.
    """
    kept = user_agent[:LONGEST_USER_AGENT]
    shown = "".join(char if " " <= char <= "~" else "?" for char in kept)
    return shown + "…" if len(user_agent) > LONGEST_USER_AGENT else shown


GOOD: Final = ("SERVING", "OK", "UNIMPLEMENTED")
"""The answers that say that all is well: UNIMPLEMENTED is one on the ALB's default path alone."""


def _by_body(good: str, bad: str) -> Callable[[str], str]:
    """Tell how a caller concludes that reads the status in the message."""
    return lambda answer: good if answer == "SERVING" else bad


def _alb(answer: str) -> str:
    """Tell how an ALB concludes: it reads the code alone."""
    match answer:
        case "UNIMPLEMENTED":
            return "healthy, with matcher 12"
        case "NOT_SERVING":
            return "healthy: it reads the code, which is 0"
        case "SERVING" | "OK":
            return "healthy, with matcher 0"
        case _:
            return "unhealthy"


def _grpc_health_probe(answer: str) -> str:
    match answer:
        case "SERVING":
            return "exit 0"
        case "NOT_SERVING":
            return "exit 4"
        case _:
            return "exit 3"


_CONCLUSIONS: Final[dict[str, Callable[[str], str]]] = {
    ALB: _alb,
    KUBELET: _by_body("success", "failure"),
    ENVOY: _by_body("healthy", "unhealthy"),
    PROBE: _grpc_health_probe,
    GRPC: _by_body("serving", "not serving"),
    OTHER: _by_body("healthy", "unhealthy, if it reads the code"),
}


def conclusion(caller: str, method: str, answer: str) -> str:
    """Tell what a caller concludes from an answer, as docs/callers.md has it.

    Args:
        caller: Its kind.
        method: What it called: `Check`, `Watch`, `List`, or `healthcheck` for the ALB's default
            path.
        answer: The status by its name in health.proto, or the name of the gRPC code.
    """
    if method == "List":
        return "a list"
    if method == "healthcheck":
        return _alb(answer)
    return _CONCLUSIONS[caller](answer)

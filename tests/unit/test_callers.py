import pytest

from ghealth.callers import (
    ALB,
    CALLERS,
    ENVOY,
    GRPC,
    KUBELET,
    OTHER,
    PROBE,
    caller_of,
    conclusion,
    presentable,
)


@pytest.mark.parametrize(
    ("user_agent", "caller"),
    [
        ("ELB-HealthChecker/2.0", "alb"),
        ("kube-probe/1.34", "kubelet"),
        ("kube-probe/1.34 grpc-go/1.72.2", "kubelet"),
        ("Envoy/HC", "envoy"),
        ("grpc_health_probe grpc-go/1.70.0", "grpc-health-probe"),
        ("grpc-health-probe/0.4.39 grpc-go/1.70.0", "grpc-health-probe"),
        ("grpc-go/1.70.0", "grpc"),
        ("ghealth/0.1.0 grpc-python-asyncio/1.85.1 grpc-c/58.0.0 (linux; chttp2)", "grpc"),
        ("curl/8.5.0", "other"),
        ("x-grpc-go/1 ELB-HealthChecker/2.0", "other"),
        ("", "other"),
    ],
)
def test_a_user_agent_tells_the_kind_of_a_caller(user_agent: str, caller: str) -> None:
    """The kinds are those of docs/callers.md; what is unknown is `other`."""
    assert caller_of(user_agent) == caller
    assert caller in CALLERS


def test_a_user_agent_is_shown_in_bounded_printable_ascii() -> None:
    """Neither control characters nor lookalikes nor length get through."""
    assert presentable("curl/8.5.0") == "curl/8.5.0"
    assert presentable("a\n\x1b[31m\u202eé~ ") == "a??[31m??~ "
    assert presentable("x" * 80) == "x" * 80
    assert presentable("x" * 5000) == "x" * 80 + "…"


@pytest.mark.parametrize(
    ("caller", "method", "answer", "concludes"),
    [
        (ALB, "Check", "SERVING", "healthy, with matcher 0"),
        (ALB, "Check", "NOT_SERVING", "healthy: it reads the code, which is 0"),
        (ALB, "Check", "UNAVAILABLE", "unhealthy"),
        (ALB, "healthcheck", "UNIMPLEMENTED", "healthy, with matcher 12"),
        (OTHER, "healthcheck", "UNAVAILABLE", "unhealthy"),
        (KUBELET, "Check", "SERVING", "success"),
        (KUBELET, "Check", "NOT_FOUND", "failure"),
        (ENVOY, "Check", "NOT_SERVING", "unhealthy"),
        (PROBE, "Check", "SERVING", "exit 0"),
        (PROBE, "Check", "NOT_SERVING", "exit 4"),
        (PROBE, "Check", "NOT_FOUND", "exit 3"),
        (GRPC, "Watch", "SERVING", "serving"),
        (GRPC, "Watch", "SERVICE_UNKNOWN", "not serving"),
        (GRPC, "List", "OK", "a list"),
        (OTHER, "Check", "UNAVAILABLE", "unhealthy, if it reads the code"),
    ],
)
def test_each_caller_concludes_what_it_is_known_to(
    caller: str, method: str, answer: str, concludes: str
) -> None:
    """What an answer means depends on who reads it."""
    assert conclusion(caller, method, answer) == concludes

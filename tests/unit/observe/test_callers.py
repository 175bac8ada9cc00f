import pytest

from ghealth.events import Method
from ghealth.health import REPLAY_SUFFIX, Answer, Code, Status
from ghealth.observe.callers import Caller, caller_of, conclusion, describe
from ghealth.printable import printable
from tests.support.events import ALB, NOT_FOUND, OK, SERVING, UNAVAILABLE, UNIMPLEMENTED, request

NOT_SERVING = Answer(Code.OK, Status.NOT_SERVING)
SERVICE_UNKNOWN = Answer(Code.OK, Status.SERVICE_UNKNOWN)


@pytest.mark.parametrize(
    ("user_agent", "caller"),
    [
        ("ELB-HealthChecker/2.0", "alb"),
        (f"ELB-HealthChecker/2.0{REPLAY_SUFFIX}/0.1.0", "alb (ghealth check)"),
        ("kube-probe/1.34 grpc-go/1.72.2", "kubelet"),
        (f"kube-probe/1.34{REPLAY_SUFFIX}", "kubelet"),
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
def test_a_user_agent_has_a_kind_of_caller(user_agent: str, caller: str) -> None:
    """The kinds are those of docs/callers.md; what is unknown is `other`."""
    assert caller_of(user_agent) is Caller(caller)


def test_a_user_agent_is_shown_in_bounded_printable_ascii() -> None:
    """Neither control characters nor lookalikes nor length get through."""
    assert printable("curl/8.5.0") == "curl/8.5.0"
    assert printable("a\n\x1b[31m\u202eé~ ") == "a??[31m??~ "
    assert printable("x" * 80) == "x" * 80
    assert printable("x" * 5000) == "x" * 79 + "…"


@pytest.mark.parametrize(
    ("caller", "method", "answer", "concludes"),
    [
        (Caller.ALB, "Check", SERVING, "healthy, with matcher 0"),
        (Caller.ALB, "Check", NOT_SERVING, "healthy: it looks at the code, which is 0"),
        (Caller.ALB, "Check", UNAVAILABLE, "unhealthy"),
        (Caller.ALB_REPLAY, "Check", NOT_SERVING, "healthy: it looks at the code, which is 0"),
        (Caller.ALB, "other", UNIMPLEMENTED, "matcher 12: healthy, 0: unhealthy"),
        (Caller.OTHER, "other", UNAVAILABLE, "unhealthy"),
        (Caller.KUBELET, "Check", SERVING, "success"),
        (Caller.KUBELET, "Check", NOT_FOUND, "failure"),
        (Caller.ENVOY, "Check", NOT_SERVING, "unhealthy"),
        (Caller.PROBE, "Check", SERVING, "exit 0"),
        (Caller.PROBE, "Check", NOT_SERVING, "exit 4"),
        (Caller.PROBE, "Check", NOT_FOUND, "exit 3"),
        (Caller.GRPC, "Watch", SERVING, "serving"),
        (Caller.GRPC, "Watch", SERVICE_UNKNOWN, "not serving"),
        (Caller.GRPC, "List", OK, "a list"),
        (Caller.GRPC, "reflection", OK, "a list"),
        (Caller.OTHER, "Check", UNAVAILABLE, "unhealthy, if it looks at the code"),
    ],
)
def test_each_caller_concludes_what_it_is_known_to(
    caller: Caller, method: Method, answer: Answer, concludes: str
) -> None:
    """The same answer means different things to different callers."""
    assert conclusion(caller, method, answer) == concludes


def test_an_answer_is_described_with_its_request() -> None:
    """Texts from callers are printable, and the reason is empty if there is none."""
    asked = {"caller": "alb", "user_agent": ALB, "method": "Check", "path": "/a", "service": ""}
    got = {"answer": "UNAVAILABLE", "good": False, "reason": "gateway answered 503"}
    described = describe(request(UNAVAILABLE, path="/a"))
    assert described == asked | got | {"concludes": "unhealthy"}
    odd = describe(request(OK, "<b>é", "List", path="/a\n"))
    assert (odd["user_agent"], odd["path"]) == ("<b>?", "/a?")
    assert (odd["reason"], odd["good"]) == ("", True)

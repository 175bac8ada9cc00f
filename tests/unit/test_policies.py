import pytest

from ghealth.answers import POLICIES, Answer, Code
from ghealth.status import ALIVE, DRAINING, Health, Status

SERVING = Health(Status.SERVING, "gateway answered 200")
SICK = Health(Status.NOT_SERVING, "gateway answered 503")
STATUS_CALLERS = ("grpc-", "Envoy/HC")
OK, UNAVAILABLE = Code.OK, Code.UNAVAILABLE

READERS = [
    "grpc-go/1.70.0",
    "grpc-python/1.85.1 grpc-c/51.0.0 (linux; chttp2)",
    "grpc_health_probe/0.4.40 grpc-go/1.70.0",
    "kube-probe/1.34 grpc-go/1.70.0",
    "grpc-node-js/1.14.0",
    "Envoy/HC",
]
OTHERS = [
    "ELB-HealthChecker/2.0",
    "",
    "curl/8.5.0",
    "xgrpc-go/1",
    "GRPC-GO/1",
    "Envoy/hc",
    "Go grpc",
]


@pytest.mark.parametrize("user_agent", READERS + OTHERS)
@pytest.mark.parametrize(
    ("policy", "health", "code_for_readers", "code_for_others"),
    [
        ("auto", SERVING, OK, OK),
        ("auto", SICK, OK, UNAVAILABLE),
        ("auto", DRAINING, OK, UNAVAILABLE),
        ("auto", ALIVE, OK, OK),
        ("status", SERVING, OK, OK),
        ("status", SICK, OK, OK),
        ("code", SERVING, OK, OK),
        ("code", SICK, UNAVAILABLE, UNAVAILABLE),
    ],
)
def test_what_each_policy_tells_each_caller(
    policy: str,
    health: Health,
    code_for_readers: Code,
    code_for_others: Code,
    user_agent: str,
) -> None:
    """Callers known to read the status get it, unknown ones a code, or all alike as told."""
    expected = code_for_readers if user_agent in READERS else code_for_others
    answer = POLICIES[policy](health, user_agent, STATUS_CALLERS)
    assert answer == Answer(expected, health.status, health.reason)


@pytest.mark.parametrize("user_agent", READERS + OTHERS)
def test_without_status_callers_everyone_gets_the_code(user_agent: str) -> None:
    """An empty list means nobody: an empty beginning must not mean everybody."""
    assert POLICIES["auto"](SICK, user_agent, ()).code is UNAVAILABLE

import pytest

from ghealth.health import DRAINING, POLICIES, Answer, Code, Health, PolicyName, Status
from tests.support.fakes import answered

SICK = Health(Status.NOT_SERVING, answered(503))
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
    "tonic/0.12.3",
    "xgrpc-go/1",
    "GRPC-GO/1",
    "Envoy/hc",
    "Go grpc",
]


@pytest.mark.parametrize("user_agent", READERS + OTHERS)
@pytest.mark.parametrize(
    ("policy", "health", "code_for_readers", "code_for_others"),
    [
        ("auto", SICK, OK, UNAVAILABLE),
        ("auto", DRAINING, OK, UNAVAILABLE),
        ("status", SICK, OK, OK),
        ("status", DRAINING, OK, OK),
        ("code", SICK, UNAVAILABLE, UNAVAILABLE),
        ("code", DRAINING, UNAVAILABLE, UNAVAILABLE),
    ],
)
def test_the_answer_of_each_policy_to_each_caller(
    policy: PolicyName,
    health: Health,
    code_for_readers: Code,
    code_for_others: Code,
    user_agent: str,
) -> None:
    """Clients known to read the message get the status, others a code, or all what is set."""
    expected = code_for_readers if user_agent in READERS else code_for_others
    answer = POLICIES[policy](health, user_agent, STATUS_CALLERS)
    status = health.status if expected is OK else None
    assert answer == Answer(expected, status, health.reason)


@pytest.mark.parametrize("user_agent", READERS + OTHERS)
def test_without_status_callers_every_caller_gets_the_code(user_agent: str) -> None:
    """An empty list has no caller in it: an empty prefix must not match every caller."""
    assert POLICIES["auto"](SICK, user_agent, ()).code is UNAVAILABLE


@pytest.mark.parametrize(
    ("answer", "name", "good"),
    [
        (Answer(Code.OK, Status.SERVING), "SERVING", True),
        (Answer(Code.OK), "OK", True),
        (Answer(Code.UNIMPLEMENTED), "UNIMPLEMENTED", True),
        (Answer(Code.OK, Status.NOT_SERVING), "NOT_SERVING", False),
        (Answer(Code.OK, Status.SERVICE_UNKNOWN), "SERVICE_UNKNOWN", False),
        (Answer(Code.UNAVAILABLE), "UNAVAILABLE", False),
        (Answer(Code.NOT_FOUND), "NOT_FOUND", False),
    ],
)
def test_an_answer_has_a_name_and_is_good_or_not(answer: Answer, name: str, good: bool) -> None:
    """The status has the name where there is one, and only what reports health is good."""
    assert (answer.name, answer.good) == (name, good)

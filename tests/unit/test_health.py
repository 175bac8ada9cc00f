import pytest

from ghealth.health import POLICIES, Answer, Code, Health, PolicyName, Reason, ReasonKind, Status
from tests.support.fakes import answered


def test_a_detail_of_a_reason_is_shown_as_it_is() -> None:
    """A custom reason may have braces."""
    assert str(Reason(ReasonKind.CUSTOM, "{}")) == "{}"


def test_health_is_serving_only_with_the_status_serving() -> None:
    """No other status counts."""
    serving = [status for status in Status if Health(status, answered(200)).serving]
    assert serving == [Status.SERVING]


# The policies.

SICK = Health(Status.NOT_SERVING, answered(503))
STATUS_CALLERS = ("grpc-", "Envoy/HC")
OK, UNAVAILABLE = Code.OK, Code.UNAVAILABLE

READERS = ["grpc-go/1.70.0", "kube-probe/1.34 grpc-go/1.70.0", "grpc-node-js/1.14.0", "Envoy/HC"]
OTHERS = ["ELB-HealthChecker/2.0", "", "tonic/0.12.3", "xgrpc-go/1", "GRPC-GO/1", "Envoy/hc"]


@pytest.mark.parametrize("user_agent", READERS + OTHERS)
@pytest.mark.parametrize(
    ("policy", "code_for_readers", "code_for_others"),
    [("auto", OK, UNAVAILABLE), ("status", OK, OK), ("code", UNAVAILABLE, UNAVAILABLE)],
)
def test_the_answer_of_each_policy_to_each_caller(
    policy: PolicyName, code_for_readers: Code, code_for_others: Code, user_agent: str
) -> None:
    """Clients known to read the message get the status, others a code, or all what is set."""
    expected = code_for_readers if user_agent in READERS else code_for_others
    answer = POLICIES[policy](SICK, user_agent, STATUS_CALLERS)
    assert answer == Answer(expected, SICK.status if expected is OK else None, SICK.reason)


@pytest.mark.parametrize("user_agent", ["grpc-go/1.70.0", ""])
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

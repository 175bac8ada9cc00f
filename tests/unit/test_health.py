import pytest

from ghealth.health import (
    ALIVE,
    DRAINING,
    POLICIES,
    Answer,
    Code,
    Health,
    PolicyName,
    Reason,
    ReasonKind,
    Result,
    Status,
)
from tests.support.fakes import answered


@pytest.mark.parametrize(
    ("kind", "text", "result"),
    [
        (ReasonKind.ANSWERED, "gateway answered X", "status"),
        (ReasonKind.TIMED_OUT, "no answer within X", "timeout"),
        (ReasonKind.REFUSED, "connection refused", "refused"),
        (ReasonKind.RESET, "connection reset", "reset"),
        (ReasonKind.CLOSED, "connection closed without an answer", "reset"),
        (ReasonKind.NOT_HTTP, "answer is not HTTP", "protocol"),
        (ReasonKind.CERTIFICATE, "certificate does not verify", "tls"),
        (ReasonKind.CERTIFICATE_EXPIRED, "certificate has expired", "tls"),
        (ReasonKind.CERTIFICATE_AUTHORITY, "certificate signed by unknown authority", "tls"),
        (ReasonKind.CERTIFICATE_NAME, "certificate is for another name", "tls"),
        (ReasonKind.TLS, "TLS failed", "tls"),
        (ReasonKind.TLS_RESET, "TLS connection reset", "reset"),
        (ReasonKind.NAME_UNRESOLVED, "name does not resolve", "dns"),
        (ReasonKind.UNREACHABLE, "cannot connect", "error"),
        (ReasonKind.INTERNAL_ERROR, "internal error", "error"),
        (ReasonKind.CUSTOM, "X", "status"),
    ],
)
def test_the_reason_of_a_probe_has_a_text_and_a_result(
    kind: ReasonKind, text: str, result: str
) -> None:
    """The texts and the results are part of the contract; a detail is shown as it is."""
    for detail in ("X", "{}"):
        assert str(Reason(kind, detail)) == text.replace("X", detail)
    assert kind.result == result


def test_the_results_are_few_and_fixed() -> None:
    """They are a label of the metrics, and part of the contract; the only success is `ok`."""
    results = "ok status timeout refused reset protocol tls dns error"
    assert " ".join(Result) == results


def test_a_reason_of_one_of_several_probes_says_which() -> None:
    """With several probes the position is in front of the text."""
    reason = Reason(ReasonKind.ANSWERED, "503", position=(2, 3))
    assert str(reason) == "probe 2 of 3: gateway answered 503"


def test_every_kind_of_reason_has_a_text_of_its_own() -> None:
    """Two kinds with the same text and result would be one member of the enumeration."""
    texts = [kind.template for kind in ReasonKind]
    assert len(set(texts)) == len(texts)


def test_health_is_serving_only_with_the_status_serving() -> None:
    """No other status counts."""
    reason = Reason(ReasonKind.ANSWERED, "200")
    serving = [status for status in Status if Health(status, reason).serving]
    assert serving == [Status.SERVING]
    assert ALIVE.serving
    assert not DRAINING.serving


# The policies.

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
OTHERS = ["ELB-HealthChecker/2.0", "", "curl/8.5.0", "tonic/0.12.3"]
LOOK_ALIKES = ["xgrpc-go/1", "GRPC-GO/1", "Envoy/hc", "Go grpc"]


@pytest.mark.parametrize("health", [SICK, DRAINING])
@pytest.mark.parametrize("user_agent", READERS + OTHERS + LOOK_ALIKES)
@pytest.mark.parametrize(
    ("policy", "code_for_readers", "code_for_others"),
    [("auto", OK, UNAVAILABLE), ("status", OK, OK), ("code", UNAVAILABLE, UNAVAILABLE)],
)
def test_the_answer_of_each_policy_to_each_caller(
    policy: PolicyName,
    code_for_readers: Code,
    code_for_others: Code,
    user_agent: str,
    health: Health,
) -> None:
    """Clients known to read the message get the status, others a code, or all what is set."""
    expected = code_for_readers if user_agent in READERS else code_for_others
    answer = POLICIES[policy](health, user_agent, STATUS_CALLERS)
    assert answer == Answer(expected, health.status if expected is OK else None, health.reason)


@pytest.mark.parametrize("user_agent", ["grpc-go/1.70.0", "", "curl/8.5.0"])
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

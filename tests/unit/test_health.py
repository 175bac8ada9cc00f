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
    ("reason", "text", "result"),
    [
        (Reason(ReasonKind.ANSWERED, "503"), "gateway answered 503", "status"),
        (Reason(ReasonKind.TIMED_OUT, "0.5 s"), "no answer within 0.5 s", "timeout"),
        (Reason(ReasonKind.REFUSED), "connection refused", "refused"),
        (Reason(ReasonKind.RESET), "connection reset", "reset"),
        (Reason(ReasonKind.CLOSED), "connection closed without an answer", "reset"),
        (Reason(ReasonKind.NOT_HTTP), "answer is not HTTP", "protocol"),
        (Reason(ReasonKind.CERTIFICATE), "certificate does not verify", "tls"),
        (Reason(ReasonKind.CERTIFICATE_EXPIRED), "certificate has expired", "tls"),
        (
            Reason(ReasonKind.CERTIFICATE_AUTHORITY),
            "certificate signed by unknown authority",
            "tls",
        ),
        (Reason(ReasonKind.CERTIFICATE_NAME), "certificate is for another name", "tls"),
        (Reason(ReasonKind.TLS), "TLS failed", "tls"),
        (Reason(ReasonKind.TLS_RESET), "TLS connection reset", "reset"),
        (Reason(ReasonKind.NAME_UNRESOLVED), "name does not resolve", "dns"),
        (Reason(ReasonKind.UNREACHABLE), "cannot connect", "error"),
        (Reason(ReasonKind.INTERNAL_ERROR), "internal error", "error"),
        (Reason(ReasonKind.CUSTOM, "a text {}"), "a text {}", "status"),
    ],
)
def test_the_reason_of_a_probe_has_a_text_and_a_result(
    reason: Reason, text: str, result: str
) -> None:
    """The texts and the results are part of the contract."""
    assert str(reason) == text
    assert reason.kind.result == result


def test_the_results_are_few_and_fixed() -> None:
    """They are a label of the metrics, and part of the contract; the only success is `ok`."""
    assert [str(result) for result in Result] == [
        "ok",
        "status",
        "timeout",
        "refused",
        "reset",
        "protocol",
        "tls",
        "dns",
        "error",
    ]


def test_a_reason_of_one_of_several_probes_says_which() -> None:
    """With several probes the position is in front of the text."""
    reason = Reason(ReasonKind.ANSWERED, "503", position=(2, 3))
    assert str(reason) == "probe 2 of 3: gateway answered 503"


@pytest.mark.parametrize("kind", ReasonKind)
def test_every_kind_of_reason_has_a_text_of_its_own(kind: ReasonKind) -> None:
    """Two kinds with the same text and result would be one member of the enumeration."""
    assert [other for other in ReasonKind if other.template == kind.template] == [kind]


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

import pytest

from ghealth.health import ALIVE, DRAINING, Health, Reason, ReasonKind, Result, Status


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

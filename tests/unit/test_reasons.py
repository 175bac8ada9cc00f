import pytest

from ghealth import reasons
from ghealth.reasons import Result, result_of


@pytest.mark.parametrize(
    ("reason", "result"),
    [
        (reasons.answered(503), "status"),
        (reasons.no_answer_within(0.5), "timeout"),
        (reasons.REFUSED, "refused"),
        (reasons.RESET, "reset"),
        (reasons.CLOSED, "reset"),
        (reasons.NOT_HTTP, "protocol"),
        (reasons.CERTIFICATE, "tls"),
        (reasons.TLS, "tls"),
        (reasons.NAME_UNRESOLVED, "dns"),
        (reasons.UNREACHABLE, "error"),
        (reasons.INTERNAL_ERROR, "error"),
    ],
)
def test_each_reason_of_an_attempt_counts_as_one_result(reason: str, result: str) -> None:
    """The results are few, and the only one that is a success is `ok`."""
    assert result_of(reason, ready=False) == result
    assert result_of(reasons.answered(404), ready=True) is Result.OK


def test_the_results_are_few_and_fixed() -> None:
    """They are a label of the metrics, and part of the contract."""
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

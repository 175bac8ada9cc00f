import pytest

from ghealth.durations import duration, show_seconds

SECONDS = {"1s": 1, "500ms": 0.5, "1m30s": 90, "1h": 3600, ".5s": 0.5, "1.s": 1, "1ns": 1e-9}
SECONDS |= {"1us": 1e-6, "1µs": 1e-6, "1μs": 1e-6, "2": 2, "0.25": 0.25, "0": 0}


@pytest.mark.parametrize(("text", "seconds"), SECONDS.items())
def test_durations(text: str, seconds: float) -> None:
    """Durations are Go's, or plain seconds."""
    assert duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text", ["", "-1s", "1 s", "1d", "s", "1s2", "inf", "1e3", "1S", "nan", ".", "+1s", "\u0661s"]
)
def test_other_texts_are_not_durations(text: str) -> None:
    """A text that Go would not accept is refused."""
    with pytest.raises(ValueError, match=r"^$"):
        duration(text)


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0, "0s"), (0.5, "0.5s"), (90, "90s"), (3599.9999, "3599.9999s"), (1e-6, "0.000001s")],
)
def test_durations_are_shown_in_their_own_syntax(seconds: float, shown: str) -> None:
    """What is shown can be parsed."""
    assert show_seconds(seconds) == shown
    assert duration(shown) == pytest.approx(seconds)

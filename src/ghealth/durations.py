"""Durations in the syntax of Go, or as plain seconds."""

import re
from typing import Final

_UNITS: Final = {
    "h": 3600.0,
    "m": 60.0,
    "s": 1.0,
    "ms": 1e-3,
    "us": 1e-6,
    "µs": 1e-6,
    "μs": 1e-6,  # the Greek letter; the one above is the micro sign
    "ns": 1e-9,
}
_NUMBER: Final = r"(?:[0-9]+\.?[0-9]*|\.[0-9]+)"
_PART: Final = re.compile(rf"({_NUMBER})({'|'.join(sorted(_UNITS, key=len, reverse=True))})")
_DURATION: Final = re.compile(rf"(?:{_PART.pattern})+")


def duration(text: str) -> float:
    """Parse a duration as Go does (`3s`, `500ms`, `1m30s`), or plain seconds.

    Args:
        text: The text.

    Returns:
        Seconds.

    Raises:
        ValueError: If it is anything else.
    """
    if re.fullmatch(_NUMBER, text):
        return float(text)
    if not _DURATION.fullmatch(text):
        raise ValueError
    return sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(text))


def show_seconds(seconds: float) -> str:
    """Render a duration in the syntax that `duration` parses."""
    return f"{seconds:.9f}".rstrip("0").rstrip(".") + "s"

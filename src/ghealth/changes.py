"""Finding the changes in what is said over and over."""

from dataclasses import dataclass
from typing import Generic, TypeVar

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Change(Generic[Value]):
    """A value that is another than before.

    Args:
        previous: The one before; None if there was none.
        held_seconds: How long that one held.
    """

    previous: Value | None
    held_seconds: float


class Changes(Generic[Value]):
    """Follows the values of several things, and tells which are changes."""

    def __init__(self) -> None:
        self._held: dict[object, tuple[Value, float]] = {}

    def change(self, key: object, value: Value, now: float) -> Change[Value] | None:
        """Take note of a value, and tell the change that it is, if any.

        Args:
            key: The thing; there must be few.
            value: What it is now.
            now: Seconds on a clock that nobody can set back.
        """
        held = self._held.get(key)
        if held is not None and held[0] == value:
            return None
        self._held[key] = (value, now)
        return Change(None, 0.0) if held is None else Change(held[0], now - held[1])

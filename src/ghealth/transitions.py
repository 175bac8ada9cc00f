"""Finding the transitions in a sequence of values."""

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Transition(Generic[Value]):
    """A value that differs from the previous one.

    Args:
        previous: The previous value; None for the first one.
        held_seconds: How long the previous value held.
    """

    previous: Value | None
    held_seconds: float


class Transitions(Generic[Value]):
    """Follows the values of several keys."""

    def __init__(self) -> None:
        self._held: dict[Hashable, tuple[Value, float]] = {}

    def record(self, key: Hashable, value: Value, now: float) -> Transition[Value] | None:
        """Record a value.

        Args:
            key: What has the value. The number of keys must be bounded.
            value: Its value now.
            now: Seconds on a monotonic clock.

        Returns:
            The transition, None if the value is the same as before.
        """
        held = self._held.get(key)
        if held is not None and held[0] == value:
            return None
        self._held[key] = (value, now)
        return Transition(None, 0.0) if held is None else Transition(held[0], now - held[1])

"""What observers are told, and how they are kept from changing an answer."""

import logging
from collections.abc import Sequence

from ghealth.status import Health

_log = logging.getLogger(__name__)


class Observer:
    """Somebody who is told what happens. A subclass takes note of what it cares about.

    It is told in the middle of an answer, so what it does must be short, bounded in memory, and
    wait for nothing. Texts that come from callers are as long as gRPC's limits let them be.
    """

    def probed(self, service: str, health: Health, seconds: float) -> None:
        """Take note of an attempt's outcome.

        Args:
            service: The service whose target was asked.
            health: What every caller is told for as long as it is fresh.
            seconds: How long the attempt took.
        """

    def answered(
        self, method: str, user_agent: str, service: str | None, answer: str, reason: str
    ) -> None:
        """Take note of what a caller is told. A watch is told each change, and its end.

        Args:
            method: The method's name: `Check`, `Watch`, `List`, or `healthcheck` for the ALB's
                default path.
            user_agent: The caller's, empty if it has none.
            service: The name that it asked for, be it known or not; None where it asked for no
                single one, or did not get as far.
            answer: The status that it is told by its name in health.proto, or else the name of
                the gRPC code.
            reason: Why.
        """

    def draining(self) -> None:
        """Take note that every service but `liveness` is not serving from now on."""


class Observers(Observer):
    """Tells several observers. What one of them raises is logged, and changes nothing.

    Args:
        observers: In the order in which they are told.
    """

    def __init__(self, observers: Sequence[Observer]) -> None:
        # Only who cares is told: answers wait for it.
        self._probed = [o.probed for o in observers if type(o).probed is not Observer.probed]
        self._answered = [
            o.answered for o in observers if type(o).answered is not Observer.answered
        ]
        self._draining = [o.draining for o in observers]

    def probed(self, service: str, health: Health, seconds: float) -> None:
        """Tell all of an attempt's outcome."""
        for tell in self._probed:
            try:
                tell(service, health, seconds)
            except Exception:
                _failed()

    def answered(
        self, method: str, user_agent: str, service: str | None, answer: str, reason: str
    ) -> None:
        """Tell all what a caller is told."""
        for tell in self._answered:
            try:
                tell(method, user_agent, service, answer, reason)
            except Exception:
                _failed()

    def draining(self) -> None:
        """Tell all of the drain."""
        for tell in self._draining:
            try:
                tell()
            except Exception:
                _failed()


def _failed() -> None:
    _log.exception("observing failed", extra={"event": "internal_error"})

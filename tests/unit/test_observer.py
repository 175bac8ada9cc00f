import pytest

from ghealth.observer import Observer, Observers
from ghealth.status import GATEWAY, Health, Status
from tests.support.fakes import Notes

UP = Health(Status.SERVING, "gateway answered 200")


class Broken(Observer):
    """An observer with a bug in everything that it does."""

    def probed(self, service: str, health: Health, seconds: float) -> None:
        raise ZeroDivisionError(service, health, seconds)

    def answered(
        self, method: str, user_agent: str, service: str | None, answer: str, reason: str
    ) -> None:
        raise ZeroDivisionError(method, user_agent, service, answer, reason)

    def draining(self) -> None:
        raise ZeroDivisionError


def tell_all(observer: Observer) -> None:
    observer.probed(GATEWAY, UP, 0.25)
    observer.answered("Check", "grpc-go/1.70.0", GATEWAY, "SERVING", UP.reason)
    observer.draining()


def test_what_an_observer_raises_is_logged_and_keeps_nothing_from_the_others(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A bug of one observer reaches neither who tells it nor the observers after it."""
    notes = Notes()
    tell_all(Observers((Broken(), notes)))
    assert notes.attempts == [(GATEWAY, UP, 0.25)]
    assert notes.answers == [("Check", "grpc-go/1.70.0", GATEWAY, "SERVING", UP.reason)]
    assert notes.drains == 1
    assert [record.getMessage() for record in caplog.records] == ["observing failed"] * 3
    assert {getattr(record, "event", "") for record in caplog.records} == {"internal_error"}


def test_an_observer_need_not_care() -> None:
    """A subclass takes note of what it wants to; the rest does nothing."""
    tell_all(Observer())

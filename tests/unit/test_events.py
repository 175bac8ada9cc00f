import pytest

from ghealth.events import DrainStarted, Event, fan_out
from tests.support.fakes import Recorder

EVENTS: list[Event] = [DrainStarted(seconds=5), DrainStarted(seconds=0)]


def broken(event: Event) -> None:
    raise ZeroDivisionError(event)


def test_what_a_sink_raises_is_logged_and_keeps_nothing_from_the_others(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A bug of one sink reaches neither the caller nor the sinks after it."""
    recorder = Recorder()
    emit = fan_out([broken, recorder])
    for event in EVENTS:
        emit(event)
    assert recorder.events == EVENTS
    assert [record.getMessage() for record in caplog.records] == ["a sink failed"] * 2
    assert {getattr(record, "event", "") for record in caplog.records} == {"internal_error"}

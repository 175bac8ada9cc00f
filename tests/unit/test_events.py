import pytest

from ghealth.events import DrainStarted, Event, ProbeCompleted, RequestAnswered, fan_out
from ghealth.health import GATEWAY, Answer, Code, Health, Status
from tests.support.fakes import Recorder, answered

EVENTS: list[Event] = [
    ProbeCompleted(service=GATEWAY, health=Health(Status.SERVING, answered(200)), seconds=0.25),
    RequestAnswered(
        method="Check",
        path="/grpc.health.v1.Health/Check",
        user_agent="grpc-go/1.70.0",
        service=GATEWAY,
        answer=Answer(Code.OK, Status.SERVING, answered(200)),
    ),
    DrainStarted(seconds=5),
]


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
    assert [record.getMessage() for record in caplog.records] == ["a sink failed"] * 3
    assert {getattr(record, "event", "") for record in caplog.records} == {"internal_error"}

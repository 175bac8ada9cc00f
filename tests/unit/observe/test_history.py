from typing import cast

import pytest

from ghealth.events import (
    ConnectionsCut,
    DrainStarted,
    Event,
    ProbeCompleted,
    RequestAnswered,
    StatusChanged,
)
from ghealth.health import (
    DRAINING,
    GATEWAY,
    LIVENESS,
    Answer,
    Code,
    Health,
    Reason,
    ReasonKind,
    Status,
)
from ghealth.observe.callers import Caller
from ghealth.observe.history import HISTORY_SIZE, History, Recorded

UP = Health(Status.SERVING, Reason(ReasonKind.ANSWERED, "200"))
DOWN = Health(Status.NOT_SERVING, Reason(ReasonKind.ANSWERED, "503"))
REFUSED = Health(Status.NOT_SERVING, Reason(ReasonKind.REFUSED))
SERVING = Answer(Code.OK, Status.SERVING)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def history(clock: Clock) -> History:
    return History([GATEWAY, "b", LIVENESS], now=lambda: clock.now + 1000, clock=clock)


def changed(previous: Health | None, health: Health) -> StatusChanged:
    return StatusChanged(service=GATEWAY, previous=previous, health=health, held_seconds=1)


def answered(user_agent: str, answer: Answer = SERVING) -> RequestAnswered:
    return RequestAnswered(
        method="Check", path="/x", user_agent=user_agent, service=GATEWAY, answer=answer
    )


def test_events_are_kept_with_their_time(history: History, clock: Clock) -> None:
    """Latest first; a status is kept since its last change, whatever its reasons."""
    events = [changed(None, UP), changed(UP, DOWN), changed(DOWN, REFUSED)]
    probe = ProbeCompleted(service=GATEWAY, health=UP, seconds=0.25)
    cut = ConnectionsCut(address="10.0.0.1", count=25, reason="calls")
    everything: list[Event] = [*events, probe, cut]
    for event in everything:
        history(event)
        clock.now += 2
    assert list(history.changes) == [
        Recorded(1104, events[2]),
        Recorded(1102, events[1]),
        Recorded(1100, events[0]),
    ]
    assert list(history.probes) == [Recorded(1106, probe)]
    assert list(history.cuts) == [Recorded(1108, cut)]
    assert history.since(GATEWAY, Status.NOT_SERVING) == 1102
    assert history.since(GATEWAY, Status.SERVING) is None
    assert history.since("b", Status.SERVING) is None
    assert history.since(LIVENESS, Status.SERVING) == 1100


def test_the_start_of_the_drain_is_kept(history: History) -> None:
    """There is none before."""
    assert history.draining_since is None
    history(DrainStarted(seconds=5))
    assert history.draining_since == 1100


def test_memory_is_bounded(history: History) -> None:
    """The last 50 of each are kept, and of a caller's texts little more than is shown."""
    for number in range(HISTORY_SIZE + 10):
        history(ProbeCompleted(service=GATEWAY, health=UP, seconds=0.25))
        history(changed(UP, DRAINING))
        history(ConnectionsCut(address="10.0.0.1", count=1, reason="calls"))
        history(
            RequestAnswered(
                method="other",
                path="/" + "z" * 8000,
                user_agent=f"{number} " + "x" * 8000,
                service="y" * 8000,
                answer=SERVING,
            )
        )
    kept = (history.probes, history.changes, history.cuts, history.answers)
    assert [len(events) for events in kept] == [HISTORY_SIZE] * 4
    assert history.answers[0].event == RequestAnswered(
        method="other",
        path="/" + "z" * 80,
        user_agent="59 " + "x" * 78,
        service=None,
        answer=SERVING,
    )


def test_frequent_callers_do_not_push_a_rare_one_out(history: History, clock: Clock) -> None:
    """The load balancer's last check is there after a thousand answers to others."""
    check = answered("ELB-HealthChecker/2.0", Answer(Code.UNAVAILABLE, reason=DOWN.reason))
    history(check)
    for _ in range(1000):
        clock.now += 0.1
        history(answered("grpc-go/1.70"))
        history(answered("kube-probe/1.34"))
    assert all(kept.event != check for kept in history.answers)
    assert history.last[Caller.ALB] == Recorded(1100, check)
    callers = (Caller.ALB, Caller.GRPC, Caller.KUBELET, Caller.ENVOY)
    assert [history.recent(caller) for caller in callers] == [1, 1000, 1000, 0]
    assert Caller.ENVOY not in history.last


def test_recent_answers_are_those_of_five_minutes(history: History, clock: Clock) -> None:
    """Older ones leave the count in steps of ten seconds, and none is kept for ever."""
    counts = []
    for _ in range(100):
        history(answered("kube-probe/1.34"))
        clock.now += 5
        counts.append(history.recent(Caller.KUBELET))
    assert counts[:58] == list(range(1, 59))
    assert set(counts[58:]) == {58, 59}
    clock.now += 289
    assert history.recent(Caller.KUBELET) == 2
    clock.now += 11
    assert history.recent(Caller.KUBELET) == 0
    assert len(history._counts) == 30


def test_an_event_of_a_new_kind_changes_nothing(history: History) -> None:
    """The core can have events that this sink does not record."""
    history(cast("Event", object()))
    assert not any((history.probes, history.changes, history.cuts, history.answers))
    assert history.draining_since is None

from types import SimpleNamespace as Clock
from typing import cast

import pytest

from ghealth.events import DrainStarted, Event
from ghealth.health import DRAINING, GATEWAY, LIVENESS, Status
from ghealth.observe.callers import Caller
from ghealth.observe.history import HISTORY_SIZE, History, Recorded
from tests.support.events import DOWN, KUBELET, REFUSED, SERVING, UP, changed, cut, probed, request


@pytest.fixture
def clock() -> Clock:
    return Clock(now=100.0)


@pytest.fixture
def history(clock: Clock) -> History:
    services = [GATEWAY, "b", LIVENESS]
    return History(services, now=lambda: clock.now + 1000, clock=lambda: clock.now)


def test_events_are_kept_with_their_time(history: History, clock: Clock) -> None:
    """Latest first; a status is kept since its last change, whatever its reasons."""
    first, down, refused = changed(None, UP), changed(UP, DOWN), changed(DOWN, REFUSED)
    events: list[Event] = [first, down, refused, probed(UP), cut(), DrainStarted(seconds=5)]
    for event in events:
        history(event)
        clock.now += 2
    changes = [Recorded(1104, refused), Recorded(1102, down), Recorded(1100, first)]
    assert list(history.changes) == changes
    assert list(history.probes) == [Recorded(1106, probed(UP))]
    assert list(history.cuts) == [Recorded(1108, cut())]
    assert history.draining_since == 1110
    assert history.since(GATEWAY, Status.NOT_SERVING) == 1102
    assert history.since(GATEWAY, Status.SERVING) is None
    assert history.since("b", Status.SERVING) is None
    assert history.since(LIVENESS, Status.SERVING) == 1100


def test_memory_is_bounded(history: History) -> None:
    """The last 50 of each are kept, and of a caller's texts little more than is shown."""
    long = "x" * 8000
    for number in range(HISTORY_SIZE + 10):
        history(probed(UP, number))
        history(changed(UP, DRAINING))
        history(cut(number))
        history(request(SERVING, f"{number} {long}", "other", path=f"/{long}", service=long))
    kept = (history.probes, history.changes, history.cuts, history.answers)
    assert [len(events) for events in kept] == [HISTORY_SIZE] * 4
    latest = (history.probes[0].event, history.cuts[0].event, history.answers[0].event)
    last = request(SERVING, "59 " + long[:78], "other", path="/" + long[:80], service=None)
    assert latest == (probed(UP, 59), cut(59), last)


def test_frequent_callers_do_not_push_a_rare_one_out(history: History, clock: Clock) -> None:
    """The load balancer's last check is there after a thousand answers to others."""
    check = request()
    history(check)
    for _ in range(1000):
        clock.now += 0.1
        history(request(SERVING, "grpc-go/1.70.0"))
        history(request(SERVING, KUBELET))
    assert all(kept.event != check for kept in history.answers)
    assert history.last[Caller.ALB] == Recorded(1100, check)
    callers = (Caller.ALB, Caller.GRPC, Caller.KUBELET, Caller.ENVOY)
    assert [history.recent(caller) for caller in callers] == [1, 1000, 1000, 0]


def test_recent_answers_are_those_of_five_minutes(history: History, clock: Clock) -> None:
    """Older ones leave the count in steps of ten seconds, and none is kept for ever."""
    counts = []
    for _ in range(100):
        history(request(SERVING, KUBELET))
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

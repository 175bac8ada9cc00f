import itertools
from typing import cast

from ghealth.events import DrainStarted, Event, ProbeCompleted, RequestAnswered
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
from ghealth.observe.history import HISTORY_SIZE, CallerSummary, Change, History, Recorded

UP = Health(Status.SERVING, Reason(ReasonKind.ANSWERED, "200"))
DOWN = Health(Status.NOT_SERVING, Reason(ReasonKind.ANSWERED, "503"))
SERVING = Answer(Code.OK, Status.SERVING)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def history_of(clock: Clock) -> History:
    return History([GATEWAY, "b", LIVENESS], now=lambda: clock.now + 1000, clock=clock)


def probed(health: Health) -> ProbeCompleted:
    return ProbeCompleted(service=GATEWAY, health=health, seconds=0.25)


def answered(user_agent: str, service: str = GATEWAY, answer: Answer = SERVING) -> RequestAnswered:
    return RequestAnswered(
        method="Check", path="/x", user_agent=user_agent, service=service, answer=answer
    )


def test_probes_and_the_changes_that_they_brought_are_kept() -> None:
    """Latest first; a change has the time for which the status before it held, the first none."""
    clock = Clock()
    history = history_of(clock)
    for health in (UP, UP, DOWN):
        history(probed(health))
        clock.now += 2
    assert history.probes == [
        Recorded(1104, probed(DOWN)),
        Recorded(1102, probed(UP)),
        Recorded(1100, probed(UP)),
    ]
    assert history.changes == [
        Change(1104, GATEWAY, DOWN, 4),
        Change(1100, GATEWAY, UP, None),
    ]
    assert history.since(GATEWAY, Status.NOT_SERVING) == 1104
    assert history.since(GATEWAY, Status.SERVING) is None
    assert history.since("b", Status.SERVING) is None
    assert history.since(LIVENESS, Status.SERVING) == 1100


def test_draining_is_a_change_that_no_probe_undoes() -> None:
    """From then on everything but `liveness` is not serving, whatever was still under way."""
    clock = Clock()
    history = history_of(clock)
    history(probed(UP))
    clock.now += 1
    assert history.draining_since is None
    history(DrainStarted(seconds=5))
    history(probed(UP))
    assert history.changes == [
        Change(1101, "b", DRAINING, None),
        Change(1101, GATEWAY, DRAINING, 1),
        Change(1100, GATEWAY, UP, None),
    ]
    assert len(history.probes) == 2
    assert history.since(LIVENESS, Status.SERVING) == 1100
    assert history.draining_since == 1101


def test_memory_is_bounded() -> None:
    """The last 50 of each are kept, and of a caller's texts little more than is shown."""
    history = history_of(Clock())
    for number in range(HISTORY_SIZE + 10):
        history(probed(UP if number % 2 else DOWN))
        event = RequestAnswered(
            method="other",
            path="/" + "z" * 8000,
            user_agent=f"{number} " + "x" * 8000,
            service="y" * 8000,
            answer=SERVING,
        )
        history(event)
    assert len(history.probes) == len(history.changes) == len(history.answers) == HISTORY_SIZE
    kept = RequestAnswered(
        method="other",
        path="/" + "z" * 80,
        user_agent="59 " + "x" * 78,
        service=None,
        answer=SERVING,
    )
    assert history.answers[0] == Recorded(1100, kept)


def test_every_kind_of_caller_has_a_summary() -> None:
    """Kinds that never asked have one too, in a fixed order."""
    history = history_of(Clock())
    assert history.callers == [CallerSummary(caller, None, 0) for caller in Caller]


def test_frequent_callers_do_not_push_a_rare_one_out() -> None:
    """The load balancer's last check is there after a thousand answers to others."""
    clock = Clock()
    history = history_of(clock)
    check = answered("ELB-HealthChecker/2.0", answer=Answer(Code.UNAVAILABLE, reason=DOWN.reason))
    history(check)
    for _ in range(1000):
        clock.now += 0.1
        history(answered("grpc-go/1.70"))
        history(answered("kube-probe/1.34"))
    assert all(kept.event != check for kept in history.answers)
    summaries = {summary.caller: summary for summary in history.callers}
    assert summaries[Caller.ALB] == CallerSummary(Caller.ALB, Recorded(1100, check), 1)
    assert summaries[Caller.GRPC].recent == summaries[Caller.KUBELET].recent == 1000


def test_recent_answers_are_those_of_five_minutes() -> None:
    """Older ones leave the count in steps of ten seconds, and none is kept for ever."""
    clock = Clock()
    history = history_of(clock)
    counts = []
    for _ in range(100):
        history(answered("kube-probe/1.34"))
        clock.now += 5
        counts.append(history.callers[2].recent)
    assert counts[:58] == list(range(1, 59))
    assert set(counts[58:]) == {58, 59}
    clock.now += 289
    assert history.callers[2].recent == 2
    clock.now += 11
    assert history.callers[2].recent == 0
    assert len(history._recent[Caller.KUBELET]._counts) == 30


def test_an_event_of_a_new_kind_changes_nothing() -> None:
    """The core can have events that this sink does not record."""
    history = history_of(Clock())
    history(cast("Event", object()))
    assert not any((history.answers, history.probes, history.changes))


def test_what_follows_from_an_event_has_its_moment() -> None:
    """A probe, the transition that it causes and the start of the status have the same time."""
    moments = itertools.count(1000.0)
    history = History([GATEWAY, LIVENESS], now=lambda: next(moments), clock=lambda: 0.0)
    history(ProbeCompleted(service=GATEWAY, health=DRAINING, seconds=0.1))
    (probe,), (change,) = history.probes, history.changes
    assert probe.time == change.time == history.since(GATEWAY, DRAINING.status)

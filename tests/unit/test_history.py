from ghealth.callers import OTHER
from ghealth.history import KEPT, Answered, Changed, History, Probed
from ghealth.status import DRAINING, GATEWAY, LIVENESS, Health, Status

UP = Health(Status.SERVING, "gateway answered 200")
DOWN = Health(Status.NOT_SERVING, "gateway answered 503")


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def history_of(clock: Clock) -> History:
    return History([GATEWAY, "b", LIVENESS], now=lambda: clock.now + 1000, clock=clock)


def test_it_remembers_attempts_and_the_changes_that_they_brought() -> None:
    """Latest first; a change tells how long the status before it held, the first has none."""
    clock = Clock()
    history = history_of(clock)
    for health in (UP, UP, DOWN):
        history.probed(GATEWAY, health, 0.25)
        clock.now += 2
    assert history.probes == [
        Probed(1104, GATEWAY, DOWN, 0.25),
        Probed(1102, GATEWAY, UP, 0.25),
        Probed(1100, GATEWAY, UP, 0.25),
    ]
    assert history.changes == [
        Changed(1104, GATEWAY, DOWN, 4),
        Changed(1100, GATEWAY, UP, None),
    ]
    assert history.since(GATEWAY, Status.NOT_SERVING) == 1104
    assert history.since(GATEWAY, Status.SERVING) is None
    assert history.since("b", Status.SERVING) is None
    assert history.since(LIVENESS, Status.SERVING) == 1100


def test_draining_is_a_change_that_no_attempt_undoes() -> None:
    """From then on everything but `liveness` is not serving, whatever was still under way."""
    clock = Clock()
    history = history_of(clock)
    history.probed(GATEWAY, UP, 0.1)
    clock.now += 1
    history.draining()
    history.probed(GATEWAY, UP, 0.1)
    assert history.changes == [
        Changed(1101, "b", DRAINING, None),
        Changed(1101, GATEWAY, DRAINING, 1),
        Changed(1100, GATEWAY, UP, None),
    ]
    assert len(history.probes) == 2
    assert history.since(LIVENESS, Status.SERVING) == 1100


def test_its_memory_is_bounded() -> None:
    """The last 50 of each are kept, and of what a caller sent no more than is shown."""
    history = history_of(Clock())
    for number in range(KEPT + 10):
        history.probed(GATEWAY, UP if number % 2 else DOWN, 0.1)
        history.answered("Check", f"{number} " + "x" * 8000, "y" * 8000, "NOT_FOUND", "no")
    assert len(history.probes) == len(history.changes) == len(history.answers) == KEPT
    latest = history.answers[0]
    assert latest == Answered(1100, "Check", OTHER, "59 " + "x" * 78, None, "NOT_FOUND", "no")

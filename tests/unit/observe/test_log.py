import json
import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

import pytest

from ghealth.events import (
    ConnectionsCut,
    DrainStarted,
    Event,
    Method,
    RequestAnswered,
    StatusChanged,
    log_event,
)
from ghealth.health import (
    CHECK_PATH,
    DRAINING,
    GATEWAY,
    Answer,
    Code,
    Health,
    Reason,
    ReasonKind,
    Status,
)
from ghealth.observe import log
from ghealth.observe.log import MAX_LINES_PER_MINUTE, MAX_PATHS, Log, logging_to
from tests.support.fakes import answered

UP = Health(Status.SERVING, answered(200))
DOWN = Health(Status.NOT_SERVING, answered(503))
REFUSED = Health(Status.NOT_SERVING, Reason(ReasonKind.REFUSED))
SERVING = Answer(Code.OK, Status.SERVING)
UNAVAILABLE = Answer(Code.UNAVAILABLE, reason=answered(503))
ALB, KUBELET = "ELB-HealthChecker/2.0", "kube-probe/1.34"
NOTHING = DrainStarted(seconds=1)  # an event that has no line itself

logger = logging.getLogger("ghealth.test")


def changed(
    previous: Health | None, health: Health, held: float = 1.0, service: str = GATEWAY
) -> Event:
    return StatusChanged(service=service, previous=previous, health=health, held_seconds=held)


def request(
    answer: Answer,
    *,
    user_agent: str = ALB,
    method: Method = "Check",
    path: str = CHECK_PATH,
    service: str | None = GATEWAY,
) -> Event:
    return RequestAnswered(
        method=method, path=path, user_agent=user_agent, service=service, answer=answer
    )


class Scene:
    """A log whose clock is set by hand, and the lines that it writes."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        self.now = 100.0
        self.log = Log([GATEWAY, "b"], lambda: self.now)
        caplog.set_level(logging.INFO, "ghealth")
        self._caplog = caplog

    def lines(self) -> list[dict[str, Any]]:
        """Return the lines since the last call: level, event, message and fields."""
        lines: list[dict[str, Any]] = [
            {
                "level": record.levelname,
                "event": record.__dict__["event"],
                "message": record.getMessage(),
                **record.__dict__["fields"],
            }
            for record in self._caplog.records
        ]
        self._caplog.clear()
        return lines

    def messages(self) -> list[str]:
        return [line["message"] for line in self.lines()]


@pytest.fixture
def scene(caplog: pytest.LogCaptureFixture) -> Scene:
    return Scene(caplog)


@pytest.mark.parametrize(
    ("event", "level", "name", "message"),
    [
        (
            changed(None, UP, 0),
            "INFO",
            "status_changed",
            "gateway is SERVING: gateway answered 200",
        ),
        (
            changed(UP, DOWN, 2.5004),
            "WARNING",
            "status_changed",
            "gateway is NOT_SERVING: gateway answered 503 (was SERVING for 2.5 s)",
        ),
        (
            changed(REFUSED, DOWN, 4, "b"),
            "WARNING",
            "reason_changed",
            "b is still NOT_SERVING: gateway answered 503 (was connection refused for 4 s)",
        ),
        (
            changed(UP, DRAINING, 9),
            "INFO",
            "status_changed",
            "gateway is NOT_SERVING: draining (was SERVING for 9 s)",
        ),
    ],
)
def test_a_change_of_status_or_reason_is_one_line(
    scene: Scene, event: StatusChanged, level: str, name: str, message: str
) -> None:
    """It has the reason and what was before; going down is a warning, draining is not."""
    scene.log(event)
    held = {} if event.previous is None else {"held_seconds": round(event.held_seconds, 3)}
    assert scene.lines() == [
        {
            "level": level,
            "event": name,
            "message": message,
            "service": event.service,
            "status": event.health.status.name,
            "reason": str(event.health.reason),
            **held,
        }
    ]


def test_a_service_that_flaps_has_few_lines_and_none_is_lost_for_good(scene: Scene) -> None:
    """Six lines a minute; then the last change has its line, with how many had none."""
    for _ in range(20):
        scene.log(changed(UP, DOWN))
        scene.log(changed(DOWN, UP))
        scene.now += 1
    lines = scene.lines()
    assert len(lines) == MAX_LINES_PER_MINUTE
    assert all("left_out" not in line for line in lines)
    scene.now += 39
    scene.log(NOTHING)
    assert scene.messages() == []
    scene.now += 1
    scene.log(NOTHING)
    scene.log(NOTHING)
    (line,) = scene.lines()
    assert (line["status"], line["left_out"]) == ("SERVING", 33)
    assert line["message"] == (
        "gateway is SERVING: gateway answered 200 (was NOT_SERVING for 1 s); "
        "33 changes before it were left out"
    )


def test_a_flood_of_one_kind_takes_no_lines_from_another(scene: Scene) -> None:
    """Another service, caller, event or reason has its line at once, and the end logs the rest."""
    for number in range(20):
        scene.log(changed(UP, DOWN) if number % 2 else changed(DOWN, UP))
        scene.log(request(UNAVAILABLE if number % 2 else SERVING))
        scene.log(ConnectionsCut(address=f"10.0.0.{number}", count=1, reason="calls"))
    assert len(scene.lines()) == 3 * MAX_LINES_PER_MINUTE
    scene.log(changed(UP, DOWN, service="b"))
    for answer in (SERVING, UNAVAILABLE):
        scene.log(request(answer, user_agent=KUBELET))
    scene.log(ConnectionsCut(address="::1", count=300, reason="connections"))
    status, got, cut = scene.lines()
    assert (status["service"], got["caller"]) == ("b", "kubelet")
    assert cut == {
        "level": "WARNING",
        "event": "connections_cut",
        "message": "cut 300 connections of ::1: too many connections",
        "address": "::1",
        "count": 300,
        "reason": "connections",
    }
    scene.log.close()
    assert [line["left_out"] for line in scene.lines()] == [13, 13, 12]


def test_the_last_line_about_a_service_is_true(scene: Scene) -> None:
    """A line that waits gets the new reason, and one about a status that is over is dropped."""
    for _ in range(4):
        scene.log(changed(UP, DOWN))
        scene.log(changed(DOWN, UP))
    scene.log(changed(UP, DOWN))
    scene.log(changed(DOWN, REFUSED, 7))
    scene.lines()
    scene.now += 60
    scene.log(NOTHING)
    (line,) = scene.lines()
    assert (line["event"], line["reason"], line["left_out"]) == (
        "status_changed",
        "connection refused",
        3,
    )
    for _ in range(4):
        scene.log(changed(REFUSED, DOWN))
        scene.log(changed(DOWN, REFUSED))
    scene.log(changed(REFUSED, UP))
    assert scene.lines()[-1]["status"] == "SERVING"
    scene.now += 60
    scene.log(NOTHING)
    assert scene.lines() == []


def test_a_caller_that_starts_to_get_another_answer_is_one_line(scene: Scene) -> None:
    """The caller, its question, the answer and why, and how long it got the previous answer."""
    for answer in [SERVING, SERVING, UNAVAILABLE] * 2:
        scene.log(request(answer))
        scene.now += 1.5
    lines = scene.lines()
    assert [(line["level"], line["answer"], line["held_seconds"]) for line in lines] == [
        ("WARNING", "UNAVAILABLE", 3),
        ("INFO", "SERVING", 1.5),
        ("WARNING", "UNAVAILABLE", 3),
    ]
    assert lines[0] == {
        "level": "WARNING",
        "event": "answer_changed",
        "message": "alb gets UNAVAILABLE from Check of gateway: gateway answered 503 "
        "(got SERVING for 3 s)",
        "caller": "alb",
        "user_agent": ALB,
        "method": "Check",
        "path": CHECK_PATH,
        "service": "",
        "answer": "UNAVAILABLE",
        "good": False,
        "reason": "gateway answered 503",
        "concludes": "unhealthy",
        "held_seconds": 3,
    }


def test_questions_are_followed_apart_and_unknown_services_together(scene: Scene) -> None:
    """Another caller, method or service is another question; unknown names are not logged."""
    not_found = Answer(Code.NOT_FOUND, reason=Reason(ReasonKind.UNKNOWN_SERVICE))
    malformed = Answer(Code.INVALID_ARGUMENT, reason=Reason(ReasonKind.MALFORMED))
    scene.log(request(SERVING, user_agent=KUBELET))
    scene.log(request(UNAVAILABLE, user_agent="Envoy/HC"))
    scene.log(request(UNAVAILABLE, user_agent=KUBELET, method="Watch"))
    scene.log(request(UNAVAILABLE, user_agent=KUBELET, service="b"))
    scene.log(request(not_found, user_agent="a", service="x"))
    scene.log(request(malformed, user_agent="b\n" * 99, service="y\n"))
    (line,) = scene.lines()
    assert (line["service"], line["user_agent"]) == (None, ("b?" * 40)[:79] + "…")
    assert line["message"].startswith("other gets INVALID_ARGUMENT from Check: malformed message")


def test_a_path_that_should_not_be_checked_is_logged_once(scene: Scene) -> None:
    """An ALB on another path than Check, or any caller on an unknown path, has one line."""
    for _ in range(2):
        scene.log(request(SERVING))
        scene.log(request(SERVING, method="Watch", user_agent="grpc-go/1.70.0"))
        scene.log(request(Answer(Code.UNIMPLEMENTED), method="other", path="/a\n", user_agent="x"))
        scene.log(request(SERVING, method="List", path="/grpc.health.v1.Health/List"))
    first, second = scene.lines()
    assert first == {
        "level": "WARNING",
        "event": "path_not_recommended",
        "message": f"other checks /a?: use the path {CHECK_PATH} with the matcher 0",
        "caller": "other",
        "user_agent": "x",
        "path": "/a?",
    }
    assert (second["caller"], second["path"]) == ("alb", "/grpc.health.v1.Health/List")
    for number in range(MAX_PATHS * 2):
        scene.log(request(Answer(Code.UNIMPLEMENTED), method="other", path=f"/{number}"))
    assert len(scene.lines()) == MAX_PATHS - 2, "a scanner fills the log"


def test_a_change_of_another_path_names_it(scene: Scene) -> None:
    """The path is what is wrong with such a target group."""
    for answer in (Answer(Code.UNIMPLEMENTED), UNAVAILABLE):
        scene.log(request(answer, method="other", path="/AWS.ALB/healthcheck", service=None))
    _, line = scene.lines()
    assert line["path"] == "/AWS.ALB/healthcheck"
    assert line["message"] == (
        "alb gets UNAVAILABLE from /AWS.ALB/healthcheck: gateway answered 503 "
        "(got UNIMPLEMENTED for 0 s)"
    )


# How lines are written.


@pytest.fixture(autouse=True)
def _all_lines_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """However busy the machine is, no line is left to a thread that a test no longer waits for."""
    monkeypatch.setattr(log, "FLUSH_TIMEOUT", 60)


def lines_of(
    write: Callable[[], None], tmp_path: Path, *, level: str = "info", as_json: bool = True
) -> list[str]:
    """Return the lines that reach a file."""
    with (tmp_path / "log").open("w+") as file:
        with logging_to(file, level=level, as_json=as_json):
            write()
        file.seek(0)
        return file.read().splitlines()


def test_a_line_for_people_and_one_for_programs(tmp_path: Path) -> None:
    """Both have the time in UTC, the level and the message; JSON has the keys of the event."""

    def write() -> None:
        log_event(logger, logging.WARNING, "found", "a text \udcff", number=1)

    (text,) = lines_of(write, tmp_path, as_json=False)
    time, level, *message = text.split()
    assert time.endswith("Z")
    assert (level, " ".join(message)) == ("WARNING", "a text \\udcff")
    line = json.loads(lines_of(write, tmp_path)[0])
    assert line.pop("time").endswith("Z")
    assert line == {
        "level": "warning",
        "event": "found",
        "message": "a text \udcff",
        "number": 1,
    }


@pytest.mark.parametrize("as_json", [True, False])
def test_a_bug_has_its_stack_once(tmp_path: Path, as_json: bool) -> None:
    """The same exception from the same place is logged once, another one again."""

    def write() -> None:
        for divisor in (0, 0, ""):
            try:
                _ = 1 / divisor  # type: ignore[operator]
            except (ZeroDivisionError, TypeError):
                logger.exception("probing failed")
        logger.error("without a stack", exc_info=(None, None, None))

    text = "\n".join(lines_of(write, tmp_path, as_json=as_json))
    assert text.count("Traceback") == 2
    assert text.count("ZeroDivisionError") == 1
    assert text.count("probing failed") == 2
    assert "without a stack" in text


def test_the_level_is_ghealths_alone_and_as_before_afterwards(tmp_path: Path) -> None:
    """Libraries log from warnings up at any level: they would name addresses and headers."""
    root, ours = logging.getLogger(), logging.getLogger("ghealth")
    before = (list(root.handlers), root.level, ours.level, threading.active_count())

    def write() -> None:
        logger.debug("ours")
        logging.getLogger("httpcore.http11").info("theirs")
        logging.getLogger("asyncio").warning("100%% theirs %s", "too")

    lines = [json.loads(line) for line in lines_of(write, tmp_path, level="debug")]
    assert [(line["event"], line["message"]) for line in lines] == [
        ("message", "ours"),
        ("message", "100% theirs too"),
    ]
    assert (list(root.handlers), root.level, ours.level, threading.active_count()) == before


def test_a_closed_standard_output_discards_the_lines() -> None:
    """Python gives None for a standard output that was closed at the start."""
    with logging_to(None, level="info", as_json=True):
        logger.info("to nobody")


class Pipe:
    """A pipe that is not read until `lines` is called."""

    def __init__(self) -> None:
        self._reader, writer = os.pipe()
        self.writer: TextIO = os.fdopen(writer, "w")

    def lines(self) -> list[Any]:
        """Read all lines once the writer has closed its side."""
        with os.fdopen(self._reader) as reader:
            return [json.loads(line) for line in reader]


def test_a_pipe_that_nobody_reads_delays_nothing() -> None:
    """Trap 18: lines are dropped and counted; the next one that is written reports how many."""
    pipe = Pipe()
    written = 5000
    with logging_to(pipe.writer, level="info", as_json=True):
        for number in range(written):
            log_event(logger, logging.INFO, "filler", "x" * 100, number=number)
        reading: list[Any] = []
        reader = threading.Thread(target=lambda: reading.extend(pipe.lines()))
        reader.start()
    pipe.writer.close()
    reader.join()
    fillers = [line for line in reading if line["event"] == "filler"]
    reports = [line for line in reading if line["event"] == "log_lines_dropped"]
    assert sum(report["dropped"] for report in reports) == written - len(fillers) > 0
    assert {report["level"] for report in reports} == {"warning"}


def test_the_end_does_not_wait_for_a_reader_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """A log that is not read delays the end of the process by a bounded time."""
    monkeypatch.setattr(log, "FLUSH_TIMEOUT", 0.01)
    pipe = Pipe()
    with logging_to(pipe.writer, level="info", as_json=True):
        (handler,) = (h for h in logging.getLogger().handlers if isinstance(h, log._LineQueue))
        for _ in range(5000):
            logger.info("x" * 100)
    assert handler._thread.is_alive(), "the end waited until all was taken"
    reader = threading.Thread(target=pipe.lines)
    reader.start()
    handler._lines.put(None)
    handler._thread.join()
    pipe.writer.close()
    reader.join()


def test_a_full_disk_is_told_when_it_is_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line that could not be written is counted, and half-written ones are finished."""
    write = os.write
    fails = iter([True])

    def sometimes(descriptor: int, data: bytes) -> int:
        if b"lost" in data and next(fails, False):
            raise OSError(28, "No space left on device")
        return write(descriptor, data[:10])

    monkeypatch.setattr(os, "write", sometimes)

    def two_lines() -> None:
        logger.info("lost")
        logger.info("found")

    lines = [json.loads(line) for line in lines_of(two_lines, tmp_path)]
    assert [line["message"] for line in lines] == [
        "1 log lines were dropped: they could not be written",
        "found",
    ]

import io
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
    ProbeCompleted,
    RequestAnswered,
    log_event,
)
from ghealth.health import CHECK_PATH, GATEWAY, Answer, Code, Health, Reason, ReasonKind, Status
from ghealth.observe import log
from ghealth.observe.log import (
    MAX_LINES_PER_MINUTE,
    MAX_PATHS,
    AnswerLog,
    CutLog,
    PathLog,
    StatusLog,
    logging_to,
)
from tests.support.fakes import answered

UP = Health(Status.SERVING, answered(200))
DOWN = Health(Status.NOT_SERVING, answered(503))
SERVING = Answer(Code.OK, Status.SERVING)
NOT_SERVING = Answer(Code.OK, Status.NOT_SERVING)
UNAVAILABLE = Answer(Code.UNAVAILABLE, reason=answered(503))
ALB = "ELB-HealthChecker/2.0"

logger = logging.getLogger("ghealth.test")


def probed(service: str, health: Health) -> Event:
    return ProbeCompleted(service=service, health=health, seconds=0.1)


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


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_change_of_status_is_one_line_and_a_good_check_none(tmp_path: Path) -> None:
    """Going down is a warning, coming up an info, with the reason and how long the last held."""
    clock = Clock()
    log_status = StatusLog(clock)

    def write() -> None:
        for health, later in [(UP, 1), (UP, 1.5), (DOWN, 1), (DOWN, 60), (UP, 1)]:
            log_status(probed(GATEWAY, health))
            clock.now += later

    lines = [json.loads(line) for line in lines_of(write, tmp_path)]
    assert [(line["level"], line["status"], line.get("held_seconds")) for line in lines] == [
        ("info", "SERVING", None),
        ("warning", "NOT_SERVING", 2.5),
        ("info", "SERVING", 61.0),
    ]
    assert {key: lines[1][key] for key in lines[1] if key != "time"} == {
        "level": "warning",
        "event": "status_changed",
        "message": "gateway is NOT_SERVING: gateway answered 503 (was SERVING for 2.5 s)",
        "service": "",
        "status": "NOT_SERVING",
        "reason": "gateway answered 503",
        "held_seconds": 2.5,
    }


def test_services_are_followed_apart(tmp_path: Path) -> None:
    """A change of one service does not count as a change of another."""
    log_status = StatusLog(Clock())

    def write() -> None:
        log_status(probed(GATEWAY, UP))
        log_status(probed("b", UP))
        log_status(probed(GATEWAY, UP))

    lines = [json.loads(line)["message"] for line in lines_of(write, tmp_path)]
    assert lines == [
        "gateway is SERVING: gateway answered 200",
        "b is SERVING: gateway answered 200",
    ]


def test_a_service_that_flaps_has_few_lines_and_none_is_lost_for_good(tmp_path: Path) -> None:
    """Six lines a minute; then the last change has its line, with how many had none."""
    clock = Clock()
    log_status = StatusLog(clock)

    def write() -> None:
        for number in range(41):
            log_status(probed(GATEWAY, DOWN if number % 2 else UP))
            clock.now += 1
        for _ in range(30):  # it stays up: nothing new, but the log does not know it yet
            log_status(probed(GATEWAY, UP))
            clock.now += 1

    lines = [json.loads(line) for line in lines_of(write, tmp_path)]
    assert len(lines) == MAX_LINES_PER_MINUTE + 1
    assert all("left_out" not in line for line in lines[:-1])
    assert lines[-2]["status"] == "NOT_SERVING"
    assert (lines[-1]["status"], lines[-1]["left_out"]) == ("SERVING", 34)
    assert lines[-1]["message"] == (
        "gateway is SERVING: gateway answered 200 (was NOT_SERVING for 1 s); "
        "34 changes before it were left out"
    )


def test_what_flaps_takes_no_lines_from_what_does_not(tmp_path: Path) -> None:
    """While the changes of one service are left out, another's change has its line at once."""
    clock = Clock()
    log_status = StatusLog(clock)

    def write() -> None:
        for number in range(20):
            log_status(probed(GATEWAY, DOWN if number % 2 else UP))
            log_status(probed("b", DOWN if number == 15 else UP))
            clock.now += 1

    lines = [json.loads(line) for line in lines_of(write, tmp_path)]
    steady = [(line["status"], line.get("held_seconds")) for line in lines if line["service"]]
    assert steady == [("SERVING", None), ("NOT_SERVING", 15), ("SERVING", 1)]


def test_a_caller_that_starts_to_get_another_answer_is_one_line(tmp_path: Path) -> None:
    """The caller, its question, the answer and why, and how long it got the previous answer."""
    clock = Clock()
    log_answer = AnswerLog([GATEWAY, "b"], clock)

    def write() -> None:
        for answer in [SERVING, SERVING, UNAVAILABLE] * 2:
            log_answer(request(answer))
            clock.now += 1.5

    lines = [json.loads(line) for line in lines_of(write, tmp_path)]
    assert [(line["level"], line["answer"], line["held_seconds"]) for line in lines] == [
        ("warning", "UNAVAILABLE", 3),
        ("info", "SERVING", 1.5),
        ("warning", "UNAVAILABLE", 3),
    ]
    assert {key: lines[0][key] for key in lines[0] if key != "time"} == {
        "level": "warning",
        "event": "answer_changed",
        "message": "alb gets UNAVAILABLE from Check of gateway: gateway answered 503 "
        "(got SERVING for 3 s)",
        "caller": "alb",
        "user_agent": ALB,
        "method": "Check",
        "service": "",
        "answer": "UNAVAILABLE",
        "reason": "gateway answered 503",
        "held_seconds": 3,
    }


def test_questions_are_followed_apart_and_unknown_services_together(tmp_path: Path) -> None:
    """Another caller, method or service is another question; unknown names are not logged."""
    log_answer = AnswerLog([GATEWAY, "b"], Clock())
    not_found = Answer(Code.NOT_FOUND, reason=Reason(ReasonKind.UNKNOWN_SERVICE))
    malformed = Answer(Code.INVALID_ARGUMENT, reason=Reason(ReasonKind.MALFORMED))

    def write() -> None:
        log_answer(request(SERVING, user_agent="kube-probe/1.34"))
        log_answer(request(NOT_SERVING, user_agent="Envoy/HC"))
        log_answer(request(NOT_SERVING, user_agent="kube-probe/1.34", method="Watch"))
        log_answer(request(NOT_SERVING, user_agent="kube-probe/1.34", service="b"))
        log_answer(request(not_found, user_agent="a", service="x"))
        log_answer(request(malformed, user_agent="b\n" * 99, service="y\n"))

    (text,) = lines_of(write, tmp_path)
    line = json.loads(text)
    assert (line["service"], line["user_agent"]) == (None, ("b?" * 40)[:79] + "…")
    assert line["message"].startswith("other gets INVALID_ARGUMENT from Check: malformed message")


def test_answers_that_flap_have_few_lines(tmp_path: Path) -> None:
    """The lines of a caller are limited, and the next one after a minute counts the rest."""
    clock = Clock()
    log_answer = AnswerLog([GATEWAY], clock)

    def write() -> None:
        for number in range(1001):
            log_answer(request(UNAVAILABLE if number % 2 else SERVING))
            clock.now += 0.01
        clock.now += 60
        log_answer(request(SERVING))

    lines = [json.loads(line) for line in lines_of(write, tmp_path)]
    assert len(lines) == MAX_LINES_PER_MINUTE + 1
    left_out = 1000 - MAX_LINES_PER_MINUTE - 1
    assert (lines[-1]["answer"], lines[-1]["left_out"]) == ("SERVING", left_out)


def test_a_path_that_should_not_be_checked_is_logged_once(tmp_path: Path) -> None:
    """An ALB on another path than Check, or any caller on an unknown path, has one line."""
    log_path = PathLog()
    unknown = Answer(Code.UNIMPLEMENTED)

    def write() -> None:
        for _ in range(2):
            log_path(request(SERVING))
            log_path(request(SERVING, method="Watch", user_agent="grpc-go/1.70.0"))
            log_path(request(unknown, method="other", path="/a\n", user_agent="curl/8"))
            log_path(request(SERVING, method="List", path="/grpc.health.v1.Health/List"))

    lines = [json.loads(line) for line in lines_of(write, tmp_path)]
    assert [(line["caller"], line["path"]) for line in lines] == [
        ("other", "/a?"),
        ("alb", "/grpc.health.v1.Health/List"),
    ]
    assert {key: lines[0][key] for key in lines[0] if key != "time"} == {
        "level": "warning",
        "event": "path_not_recommended",
        "message": f"other checks /a?: use the path {CHECK_PATH} with the matcher 0",
        "caller": "other",
        "user_agent": "curl/8",
        "path": "/a?",
    }


def test_the_paths_in_the_log_are_bounded(tmp_path: Path) -> None:
    """A scanner that tries every path does not fill the log."""
    log_path = PathLog()

    def write() -> None:
        for number in range(MAX_PATHS * 2):
            log_path(request(Answer(Code.UNIMPLEMENTED), method="other", path=f"/{number}"))

    assert len(lines_of(write, tmp_path)) == MAX_PATHS


@pytest.mark.parametrize("sink", [StatusLog(), AnswerLog([GATEWAY]), PathLog()])
def test_other_events_are_not_a_sinks_business(
    tmp_path: Path, sink: Callable[[Event], None]
) -> None:
    """Each sink logs the events that it knows."""
    assert lines_of(lambda: sink(DrainStarted(seconds=1)), tmp_path) == []


def test_a_line_for_people(tmp_path: Path) -> None:
    """As text, a line has the time in UTC, the level and the message."""
    (line,) = lines_of(lambda: StatusLog()(probed(GATEWAY, DOWN)), tmp_path, as_json=False)
    time, level, *message = line.split()
    assert time.endswith("Z")
    assert level == "WARNING"
    assert " ".join(message) == "gateway is NOT_SERVING: gateway answered 503"


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


def test_the_level_is_ghealths_alone(tmp_path: Path) -> None:
    """Libraries log from warnings up at any level: they would name addresses and headers."""

    def write() -> None:
        logger.debug("ours")
        logging.getLogger("httpcore.http11").info("theirs")
        logging.getLogger("asyncio").warning("100%% theirs %s", "too")

    lines = [json.loads(line) for line in lines_of(write, tmp_path, level="debug")]
    assert [(line["event"], line["message"]) for line in lines] == [
        ("message", "ours"),
        ("message", "100% theirs too"),
    ]


def test_everything_is_as_before_afterwards(tmp_path: Path) -> None:
    """The process's logging is left as it was found."""
    root, ours = logging.getLogger(), logging.getLogger("ghealth")
    before = (list(root.handlers), root.level, ours.level, threading.active_count())
    lines_of(lambda: None, tmp_path, level="debug")
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
    """Trap 23: lines are dropped and counted; the next one that is written reports how many."""
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


def test_a_stream_without_a_descriptor_is_a_bug() -> None:
    """Lines go to a file descriptor; anything else is refused at once."""
    with pytest.raises(io.UnsupportedOperation), logging_to(io.StringIO(), level="info", as_json=1):  # type: ignore[arg-type]
        pass


def test_addresses_that_are_cut_have_few_lines(caplog: pytest.LogCaptureFixture) -> None:
    """Six lines a minute, and the next one has the number of those left out."""
    now = 0.0
    log = CutLog(lambda: now)
    log(DrainStarted(seconds=1))
    for number in range(10):
        log(ConnectionsCut(address=f"10.0.0.{number}", count=25, reason="calls"))
    assert len(caplog.records) == MAX_LINES_PER_MINUTE
    assert caplog.records[0].getMessage() == "cut 25 connections of 10.0.0.0: too many calls"
    now = 60.0
    log(ConnectionsCut(address="::1", count=300, reason="memory"))
    assert caplog.records[-1].getMessage() == (
        "cut 300 connections of ::1: memory is short; 4 addresses before it were left out"
    )
    assert vars(caplog.records[-1])["fields"] == {
        "address": "::1",
        "count": 300,
        "reason": "memory",
        "left_out": 4,
    }

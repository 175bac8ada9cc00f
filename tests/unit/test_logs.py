import io
import json
import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

import pytest

from ghealth import logs
from ghealth.logs import LINES_A_MINUTE, AnswerLog, StatusLog, log_event, logging_to
from ghealth.status import GATEWAY, Health, Status

UP = Health(Status.SERVING, "gateway answered 200")
DOWN = Health(Status.NOT_SERVING, "gateway answered 503")

log = logging.getLogger("ghealth.test")


@pytest.fixture(autouse=True)
def _all_lines_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """However busy the machine is, no line is left to a thread that a test no longer waits for."""
    monkeypatch.setattr(logs, "FLUSH_PATIENCE", 60)


def lines_of(
    write: Callable[[], None], tmp_path: Path, *, level: str = "info", as_json: bool = True
) -> list[str]:
    """Tell the lines that reach a file."""
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
    noted = StatusLog(clock)

    def write() -> None:
        for health, later in [(UP, 1), (UP, 1.5), (DOWN, 1), (DOWN, 60), (UP, 1)]:
            noted.probed(GATEWAY, health, 0.1)
            clock.now += later

    told = [json.loads(line) for line in lines_of(write, tmp_path)]
    assert [(line["level"], line["status"], line.get("held_seconds")) for line in told] == [
        ("info", "SERVING", None),
        ("warning", "NOT_SERVING", 2.5),
        ("info", "SERVING", 61.0),
    ]
    assert {key: told[1][key] for key in told[1] if key != "time"} == {
        "level": "warning",
        "event": "status_changed",
        "message": "gateway is NOT_SERVING: gateway answered 503 (was SERVING for 2.5 s)",
        "service": "",
        "status": "NOT_SERVING",
        "reason": "gateway answered 503",
        "held_seconds": 2.5,
    }


def test_services_are_followed_apart(tmp_path: Path) -> None:
    """A change of one service is no change of another."""
    noted = StatusLog(Clock())

    def write() -> None:
        noted.probed(GATEWAY, UP, 0.1)
        noted.probed("b", UP, 0.1)
        noted.probed(GATEWAY, UP, 0.1)

    told = [json.loads(line)["message"] for line in lines_of(write, tmp_path)]
    assert told == [
        "gateway is SERVING: gateway answered 200",
        "b is SERVING: gateway answered 200",
    ]


def test_a_service_that_flaps_has_few_lines_and_none_is_lost_for_good(tmp_path: Path) -> None:
    """Six lines a minute; then the last change has its line, with how many had none."""
    clock = Clock()
    noted = StatusLog(clock)

    def write() -> None:
        for number in range(41):
            noted.probed(GATEWAY, DOWN if number % 2 else UP, 0.1)
            clock.now += 1
        for _ in range(30):  # it stays up: nothing new, but the log does not know it yet
            noted.probed(GATEWAY, UP, 0.1)
            clock.now += 1

    told = [json.loads(line) for line in lines_of(write, tmp_path)]
    assert len(told) == LINES_A_MINUTE + 1
    assert all("left_out" not in line for line in told[:-1])
    assert told[-2]["status"] == "NOT_SERVING"
    assert (told[-1]["status"], told[-1]["left_out"]) == ("SERVING", 34)
    assert told[-1]["message"] == (
        "gateway is SERVING: gateway answered 200 (was NOT_SERVING for 1 s); "
        "34 changes before it were left out"
    )


def test_what_flaps_takes_no_lines_from_what_does_not(tmp_path: Path) -> None:
    """While the changes of one service are left out, another's change has its line at once."""
    clock = Clock()
    noted = StatusLog(clock)

    def write() -> None:
        for number in range(20):
            noted.probed(GATEWAY, DOWN if number % 2 else UP, 0.1)
            noted.probed("b", DOWN if number == 15 else UP, 0.1)
            clock.now += 1

    told = [json.loads(line) for line in lines_of(write, tmp_path)]
    steady = [(line["status"], line.get("held_seconds")) for line in told if line["service"]]
    assert steady == [("SERVING", None), ("NOT_SERVING", 15), ("SERVING", 1)]


def test_a_caller_that_starts_to_get_another_answer_is_one_line(tmp_path: Path) -> None:
    """Who, what it asked, what it gets and why, and how long it got the other answer."""
    clock = Clock()
    noted = AnswerLog([GATEWAY, "b"], clock)
    agent = "ELB-HealthChecker/2.0"

    def write() -> None:
        for answer, health in [("SERVING", UP), ("SERVING", UP), ("UNAVAILABLE", DOWN)] * 2:
            noted.answered("Check", agent, GATEWAY, answer, health.reason)
            clock.now += 1.5

    told = [json.loads(line) for line in lines_of(write, tmp_path)]
    assert [(line["level"], line["answer"], line["held_seconds"]) for line in told] == [
        ("warning", "UNAVAILABLE", 3),
        ("info", "SERVING", 1.5),
        ("warning", "UNAVAILABLE", 3),
    ]
    assert {key: told[0][key] for key in told[0] if key != "time"} == {
        "level": "warning",
        "event": "answer_changed",
        "message": "alb gets UNAVAILABLE from Check of gateway: gateway answered 503 "
        "(got SERVING for 3 s)",
        "caller": "alb",
        "user_agent": agent,
        "method": "Check",
        "service": "",
        "answer": "UNAVAILABLE",
        "reason": "gateway answered 503",
        "held_seconds": 3,
    }


def test_questions_are_followed_apart_and_unknown_services_together(tmp_path: Path) -> None:
    """Another kind, method or service is another question; the names of strangers are not told."""
    noted = AnswerLog([GATEWAY, "b"], Clock())

    def write() -> None:
        noted.answered("Check", "kube-probe/1.34", GATEWAY, "SERVING", "")
        noted.answered("Check", "Envoy/HC", GATEWAY, "NOT_SERVING", "")
        noted.answered("Watch", "kube-probe/1.34", GATEWAY, "NOT_SERVING", "")
        noted.answered("Check", "kube-probe/1.34", "b", "NOT_SERVING", "")
        noted.answered("Check", "a", "x", "NOT_FOUND", "unknown service")
        noted.answered("Check", "b\n" * 99, "y\n", "INVALID_ARGUMENT", "malformed message")

    (line,) = lines_of(write, tmp_path)
    told = json.loads(line)
    assert (told["service"], told["user_agent"]) == (None, "b?" * 40 + "…")
    assert told["message"].startswith("other gets INVALID_ARGUMENT from Check: malformed message")


def test_answers_that_flap_have_few_lines(tmp_path: Path) -> None:
    """A caller that alternates fills no log, and the next line after a minute tells how often."""
    clock = Clock()
    noted = AnswerLog([GATEWAY], clock)

    def write() -> None:
        for number in range(1001):
            answer = "UNAVAILABLE" if number % 2 else "SERVING"
            noted.answered("Check", "curl/8", GATEWAY, answer, "")
            clock.now += 0.01
        clock.now += 60
        noted.answered("Check", "curl/8", GATEWAY, "SERVING", "")

    told = [json.loads(line) for line in lines_of(write, tmp_path)]
    assert len(told) == LINES_A_MINUTE + 1
    assert (told[-1]["answer"], told[-1]["left_out"]) == ("SERVING", 1000 - LINES_A_MINUTE - 1)


def test_a_line_for_people(tmp_path: Path) -> None:
    """As text, a line has the time in UTC, the level and the message."""
    (line,) = lines_of(lambda: StatusLog().probed(GATEWAY, DOWN, 0.1), tmp_path, as_json=False)
    time, level, *message = line.split()
    assert time.endswith("Z")
    assert level == "WARNING"
    assert " ".join(message) == "gateway is NOT_SERVING: gateway answered 503"


@pytest.mark.parametrize("as_json", [True, False])
def test_a_bug_has_its_stack_once(tmp_path: Path, as_json: bool) -> None:
    """The same exception from the same place is told once, another one again."""

    def write() -> None:
        for divisor in (0, 0, ""):
            try:
                _ = 1 / divisor  # type: ignore[operator]
            except (ZeroDivisionError, TypeError):
                log.exception("probing failed")
        log.error("without a stack", exc_info=(None, None, None))

    text = "\n".join(lines_of(write, tmp_path, as_json=as_json))
    assert text.count("Traceback") == 2
    assert text.count("ZeroDivisionError") == 1
    assert text.count("probing failed") == 2
    assert "without a stack" in text


def test_the_level_is_ghealths_alone(tmp_path: Path) -> None:
    """On debug, libraries stay quiet: their lines would name addresses and headers."""

    def write() -> None:
        log.debug("ours")
        logging.getLogger("httpcore.http11").info("theirs")
        logging.getLogger("asyncio").warning("100%% theirs %s", "too")

    told = [json.loads(line) for line in lines_of(write, tmp_path, level="debug")]
    assert [(line["event"], line["message"]) for line in told] == [
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
        log.info("to nobody")


class Pipe:
    """A pipe that nobody reads until `lines` is called."""

    def __init__(self) -> None:
        self._reader, writer = os.pipe()
        self.writer: TextIO = os.fdopen(writer, "w")

    def lines(self) -> list[Any]:
        """Read all lines once the writer has closed its side."""
        with os.fdopen(self._reader) as reader:
            return [json.loads(line) for line in reader]


def test_a_pipe_that_nobody_reads_delays_nothing() -> None:
    """Trap 23: lines are dropped and counted; the next one that gets through tells how many."""
    pipe = Pipe()
    written = 5000
    with logging_to(pipe.writer, level="info", as_json=True):
        for number in range(written):
            log_event(log, logging.INFO, "filler", "x" * 100, number=number)
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
    """A log that nobody takes holds up the end of the process by a bounded time."""
    monkeypatch.setattr(logs, "FLUSH_PATIENCE", 0.01)
    pipe = Pipe()
    with logging_to(pipe.writer, level="info", as_json=True):
        (handler,) = (h for h in logging.getLogger().handlers if isinstance(h, logs._LineQueue))
        for _ in range(5000):
            log.info("x" * 100)
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
        log.info("lost")
        log.info("found")

    told = [json.loads(line) for line in lines_of(two_lines, tmp_path)]
    assert [line["message"] for line in told] == [
        "1 log lines were dropped: nobody took them",
        "found",
    ]


def test_a_stream_without_a_descriptor_is_a_bug() -> None:
    """Lines go to a file descriptor; anything else is refused at once."""
    with pytest.raises(io.UnsupportedOperation), logging_to(io.StringIO(), level="info", as_json=1):  # type: ignore[arg-type]
        pass

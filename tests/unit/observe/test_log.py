import json
import logging
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ghealth.events import DrainStarted, Event, log_event
from ghealth.health import CHECK_PATH, DRAINING, GATEWAY, Answer, Code, Reason, ReasonKind
from ghealth.observe import log
from ghealth.observe.callers import describe
from ghealth.observe.log import MAX_LINES_PER_MINUTE, MAX_PATHS, JsonFormatter, Log, logging_to
from tests.support import events
from tests.support.events import DOWN, REFUSED, SERVING, UNAVAILABLE, UP, changed, cut, request

DOWN_AND_UP = [changed(UP, DOWN), changed(DOWN, UP)]
NOTHING = DrainStarted(seconds=1)  # an event that has no line itself

logger = logging.getLogger("ghealth.test")


class Scene:
    """A log whose clock is set by hand, and the lines that it writes."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        self.now = 100.0
        self.log = Log([GATEWAY, "b"], lambda: self.now)
        caplog.set_level(logging.INFO, "ghealth")
        self._caplog = caplog

    def lines(self, *events: Event) -> list[dict[str, Any]]:
        """Return the lines of these events, as programs get them."""
        for event in events:
            self.log(event)
        lines = [json.loads(JsonFormatter().format(record)) for record in self._caplog.records]
        self._caplog.clear()
        return lines


@pytest.fixture
def scene(caplog: pytest.LogCaptureFixture) -> Scene:
    return Scene(caplog)


def test_a_change_of_status_or_reason_is_one_line(scene: Scene) -> None:
    """It has the reason and what was before; going down is a warning, draining is not."""
    lines = scene.lines(
        changed(None, UP, 0),
        changed(UP, DOWN, 2.5004),
        changed(REFUSED, DOWN, 4, service="b"),
        changed(UP, DRAINING, 9),
    )
    assert [f"{line['level']}: {line['message']}" for line in lines] == [
        "info: gateway is SERVING: gateway answered 200",
        "warning: gateway is NOT_SERVING: gateway answered 503 (was SERVING for 2.5 s)",
        "warning: b is still NOT_SERVING: gateway answered 503 (was connection refused for 4 s)",
        "info: gateway is NOT_SERVING: draining (was SERVING for 9 s)",
    ]
    first, down, still, _ = lines
    assert "held_seconds" not in first
    fields = {"service": "", "status": "NOT_SERVING", "reason": "gateway answered 503"}
    assert down.items() >= (fields | {"event": "status_changed", "held_seconds": 2.5}).items()
    assert (still["service"], still["event"]) == ("b", "reason_changed")


def test_a_service_that_flaps_has_few_lines_and_none_is_lost_for_good(scene: Scene) -> None:
    """Six lines a minute; then the last change has its line, with how many had none."""
    for _ in range(20):
        for event in DOWN_AND_UP:
            scene.log(event)
        scene.now += 1
    lines = scene.lines()
    assert len(lines) == MAX_LINES_PER_MINUTE
    assert all("left_out" not in line for line in lines)
    scene.now += 39
    assert scene.lines(NOTHING) == []
    scene.now += 1
    (line,) = scene.lines(NOTHING, NOTHING)
    assert (line["status"], line["left_out"]) == ("SERVING", 33)
    assert line["message"].endswith("(was NOT_SERVING for 1 s); 33 changes before it were left out")


def test_a_flood_of_one_kind_takes_no_lines_from_another(scene: Scene) -> None:
    """Another service, caller, event or reason has its line at once, and the end logs the rest."""
    flood: list[Event] = [*DOWN_AND_UP, request(SERVING), request(UNAVAILABLE), cut(), cut()]
    assert len(scene.lines(*flood * 10)) == 3 * MAX_LINES_PER_MINUTE
    status, got, connections = scene.lines(
        changed(UP, DOWN, service="b"),
        request(SERVING, events.KUBELET),
        request(UNAVAILABLE, events.KUBELET),
        cut(300, "::1", "connections"),
    )
    assert (status["service"], got["caller"]) == ("b", "kubelet")
    assert connections["message"] == "cut 300 connections of ::1: too many connections"
    fields = {"address": "::1", "count": 300, "reason": "connections", "level": "warning"}
    assert connections.items() >= (fields | {"event": "connections_cut"}).items()
    scene.log.close()
    assert [line["left_out"] for line in scene.lines()] == [13, 12, 13]


def test_the_last_line_about_a_service_is_true(scene: Scene) -> None:
    """A line that waits gets the new reason, and one about a status that is over is dropped."""
    scene.lines(*DOWN_AND_UP * 4, changed(UP, DOWN), changed(DOWN, REFUSED, 7))
    scene.now += 60
    (line,) = scene.lines(NOTHING)
    assert (line["event"], line["reason"]) == ("status_changed", "connection refused")
    assert line["left_out"] == 3
    reasons = [changed(REFUSED, DOWN), changed(DOWN, REFUSED)]
    assert scene.lines(*reasons * 4, changed(REFUSED, UP))[-1]["status"] == "SERVING"
    scene.now += 60
    assert scene.lines(NOTHING) == []


def test_a_caller_that_starts_to_get_another_answer_is_one_line(scene: Scene) -> None:
    """The caller, its question, the answer and why, and how long it got the previous answer."""
    for answer in [SERVING, SERVING, UNAVAILABLE] * 2:
        scene.log(request(answer))
        scene.now += 1.5
    down, up, _ = scene.lines()
    assert (up["level"], up["answer"], up["held_seconds"]) == ("info", "SERVING", 1.5)
    why = "gateway answered 503 (got SERVING for 3 s)"
    assert down["message"] == f"alb gets UNAVAILABLE from Check of gateway: {why}"
    fields = {"level": "warning", "event": "answer_changed", "held_seconds": 3}
    assert down.items() >= (fields | describe(request(UNAVAILABLE))).items()


def test_questions_are_followed_apart_and_unknown_services_together(scene: Scene) -> None:
    """Another caller, method or service is another question; unknown names are not logged."""
    malformed = Answer(Code.INVALID_ARGUMENT, reason=Reason(ReasonKind.MALFORMED))
    (line,) = scene.lines(
        request(SERVING, events.KUBELET),
        request(UNAVAILABLE, "Envoy/HC"),
        request(UNAVAILABLE, events.KUBELET, "Watch"),
        request(UNAVAILABLE, events.KUBELET, service="b"),
        request(events.NOT_FOUND, "a", service="x"),
        request(malformed, "b\n" * 99, service="y\n"),
    )
    assert (line["service"], line["user_agent"]) == (None, ("b?" * 40)[:79] + "…")
    assert line["message"].startswith("other gets INVALID_ARGUMENT from Check: malformed message")


def test_a_path_that_should_not_be_checked_is_logged_once(scene: Scene) -> None:
    """An ALB on another path than Check, or any caller on an unknown path, has one line."""
    requests = [
        request(),
        request(SERVING, events.KUBELET, "Watch"),
        request(events.UNIMPLEMENTED, "x", "other", path="/a\n"),
        request(method="List", path="/List"),
    ]
    first, second = scene.lines(*requests * 2)
    assert first["message"] == f"other checks /a?: use the path {CHECK_PATH} with the matcher 0"
    fields = {"caller": "other", "user_agent": "x", "path": "/a?", "level": "warning"}
    assert first.items() >= (fields | {"event": "path_not_recommended"}).items()
    assert (second["caller"], second["path"]) == ("alb", "/List")
    scan = [
        request(events.UNIMPLEMENTED, method="other", path=f"/{n}") for n in range(MAX_PATHS * 2)
    ]
    assert len(scene.lines(*scan)) == MAX_PATHS - 2, "a scanner fills the log"


def test_a_change_of_another_path_names_it(scene: Scene) -> None:
    """The path is what is wrong with such a target group."""
    path = "/AWS.ALB/healthcheck"
    answers = (events.UNIMPLEMENTED, UNAVAILABLE)
    _, line = scene.lines(*(request(a, method="other", path=path, service=None) for a in answers))
    why = "gateway answered 503 (got UNIMPLEMENTED for 0 s)"
    assert line["message"] == f"alb gets UNAVAILABLE from {path}: {why}"


# How lines are written.


@pytest.fixture(autouse=True)
def _all_lines_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """However busy the machine is, no line is left to a thread that a test no longer waits for."""
    monkeypatch.setattr(log, "FLUSH_TIMEOUT", 60)


@contextmanager
def written(folder: Path, *, level: str = "info", as_json: bool = True) -> Iterator[list[Any]]:
    """Write to a file, and read its lines at the end of the block."""
    lines: list[Any] = []
    with (folder / "log").open("w+") as file:
        with logging_to(file, level=level, as_json=as_json):
            yield lines
        file.seek(0)
        lines += map(json.loads, file) if as_json else file


def test_a_line_for_people_and_one_for_programs(tmp_path: Path) -> None:
    """Both have the time in UTC, the level and the message; JSON has the keys of the event."""
    shown: list[Any] = []
    for as_json in (False, True):
        with written(tmp_path, as_json=as_json) as lines:
            log_event(logger, logging.WARNING, "found", "a text \udcff", number=1)
        shown += lines
    text, line = shown
    time, *rest = text.split()
    assert time[-1] == line.pop("time")[-1] == "Z"
    assert rest == ["WARNING", "a", "text", "\\udcff"]
    message = "a text \udcff"
    assert line == {"level": "warning", "event": "found", "message": message, "number": 1}


@pytest.mark.parametrize("as_json", [True, False])
def test_a_bug_has_its_stack_once(tmp_path: Path, as_json: bool) -> None:
    """The same exception from the same place is logged once, another one again."""
    with written(tmp_path, as_json=as_json) as lines:
        for divisor in (0, 0, ""):
            try:
                _ = 1 / divisor  # type: ignore[operator]
            except (ZeroDivisionError, TypeError):
                logger.exception("probing failed")
        logger.error("without a stack", exc_info=(None, None, None))
    words = ("Traceback", "ZeroDivisionError", "probing failed", "without a stack")
    assert [str(lines).count(word) for word in words] == [2, 1, 2, 1]


def test_the_level_is_ghealths_alone_and_as_before_afterwards(tmp_path: Path) -> None:
    """Libraries log from warnings up at any level: they would name addresses and headers."""
    root, ours = logging.getLogger(), logging.getLogger("ghealth")
    before = (list(root.handlers), root.level, ours.level, threading.active_count())
    with written(tmp_path, level="debug") as lines:
        logger.debug("ours")
        logging.getLogger("httpcore.http11").info("theirs")
        logging.getLogger("asyncio").warning("100%% theirs %s", "too")
    assert {line["event"] for line in lines} == {"message"}
    assert [line["message"] for line in lines] == ["ours", "100% theirs too"]
    assert (list(root.handlers), root.level, ours.level, threading.active_count()) == before


def test_a_pipe_that_nobody_reads_delays_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trap 18: neither a line nor the end waits; the next line reports how many were dropped."""
    end, other_end = os.pipe()
    reader, writer = os.fdopen(end), os.fdopen(other_end, "w")
    with monkeypatch.context() as short:
        short.setattr(log, "FLUSH_TIMEOUT", 0.01)
        with logging_to(writer, level="info", as_json=True):
            handler = logging.getLogger().handlers[-1]
            for _ in range(5000):
                log_event(logger, logging.INFO, "filler", "x" * 100)
    with ThreadPoolExecutor(1) as pool, reader:
        reading = pool.submit(reader.readlines)
        handler.close()  # again: its thread writes what waits
        writer.close()
        lines = [json.loads(line) for line in reading.result()]
    reports = [line for line in lines if line["event"] == "log_lines_dropped"]
    assert sum(report["dropped"] for report in reports) == 5000 - len(lines) + len(reports) > 0
    assert {report["level"] for report in reports} == {"warning"}


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
    with written(tmp_path) as lines:
        logger.info("lost")
        logger.info("found")
    dropped = "1 log lines were dropped: they could not be written"
    assert [line["message"] for line in lines] == [dropped, "found"]

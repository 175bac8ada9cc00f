"""The log: one line per event, written by a thread so that it delays no answer."""

import json
import logging
import logging.handlers
import math
import os
import queue
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Collection, Hashable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any, Final, TextIO

from ghealth.events import OTHER, ConnectionsCut, Event, RequestAnswered, StatusChanged, log_event
from ghealth.health import CHECK_PATH, DRAINING
from ghealth.observe.callers import Caller, caller_of, describe
from ghealth.printable import printable

_log = logging.getLogger(__name__)

Fields = dict[str, Any]

QUEUE_SIZE: Final = 1000
"""Maximum number of lines that wait to be written; further ones are dropped and counted."""

FLUSH_TIMEOUT: Final = 0.5
"""Seconds that the end of the process waits for the last lines to be written."""

MAX_LINES_PER_MINUTE: Final = 6
"""Maximum number of lines a minute about one thing that keeps changing."""

_MINUTE: Final = 60.0

MAX_PATHS: Final = 20
"""Paths that are logged because no load balancer should check them."""


class Log:
    """A sink that logs each change of a status, of a reason or of what a kind of caller gets.

    It also logs the paths that no load balancer should check, and connections that were cut.

    Args:
        services: The configured names; all others count as one.
        clock: Seconds on a monotonic clock.
    """

    def __init__(
        self, services: Collection[str], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._services = frozenset(services)
        self._clock = clock
        self._limited = _LimitedLines()
        self._statuses: dict[str, StatusChanged] = {}
        self._answers: dict[Hashable, tuple[str, float]] = {}
        self._paths: set[str] = set()

    def __call__(self, event: Event) -> None:
        """Log an event, and the lines that were left out before and are due now."""
        now = self._clock()
        match event:
            case StatusChanged():
                self._log_status(event)
            case RequestAnswered():
                if event.method != "Check":
                    self._log_path(event)
                self._log_answer(event, now)
            case ConnectionsCut(address=address, count=count, reason=reason):
                why = "memory is short" if reason == "memory" else f"too many {reason}"
                text = f"cut {count} connections of {address}: {why}"
                fields = {"address": address, "count": count, "reason": reason}
                self._limited.add(logging.WARNING, "connections_cut", reason, text, fields)
        self._limited.flush(now)

    def close(self) -> None:
        """Log the lines that were left out last."""
        self._limited.flush(math.inf)

    def _log_status(self, event: StatusChanged) -> None:
        service = event.service
        if event.is_new_status:
            self._statuses[service] = event
            # A line that waits would be about a status that is over.
            self._limited.waiting.pop(("reason_changed", service), None)
        elif ("status_changed", service) in self._limited.waiting:
            # That line gets the new reason: it is the last one, and true when it is written.
            event = replace(self._statuses[service], health=event.health)
        health, previous = event.health, event.previous
        state, reason = health.status.name, str(health.reason)
        fields: Fields = {"service": service, "status": state, "reason": reason}
        still = "" if event.is_new_status else "still "
        text = f"{service or 'gateway'} is {still}{state}: {reason}"
        if previous is not None:
            fields["held_seconds"] = held = round(event.held_seconds, 3)
            was = previous.status.name if event.is_new_status else previous.reason
            text += f" (was {was} for {held:g} s)"
        level = logging.INFO if health.serving or health == DRAINING else logging.WARNING
        name = "status_changed" if event.is_new_status else "reason_changed"
        self._limited.add(level, name, service, text, fields)

    def _log_answer(self, event: RequestAnswered, now: float) -> None:
        service = event.service if event.service in self._services else None
        question = (caller_of(event.user_agent), event.method, service)
        name, (previous, since) = event.answer.name, self._answers.get(question, ("", now))
        if name == previous:
            return
        self._answers[question] = (name, now)
        if not previous:
            return
        fields = describe(event) | {"service": service, "held_seconds": round(now - since, 3)}
        text = "{caller} gets {answer} from ".format_map(fields)
        text += fields["path"] if event.method == OTHER else event.method
        text += "" if service is None else f" of {service or 'gateway'}"
        text += f": {fields['reason']}" if fields["reason"] else ""
        text += f" (got {previous} for {fields['held_seconds']:g} s)"
        level = logging.INFO if event.answer.good else logging.WARNING
        self._limited.add(level, "answer_changed", question, text, fields)

    def _log_path(self, event: RequestAnswered) -> None:
        """Log once a path that is not served, or a path other than Check that an ALB calls."""
        caller, path = caller_of(event.user_agent), printable(event.path)
        if event.method != OTHER and caller is not Caller.ALB:
            return
        if path not in self._paths and len(self._paths) < MAX_PATHS:
            self._paths.add(path)
            text = f"{caller} checks {path}: use the path {CHECK_PATH} with the matcher 0"
            agent = printable(event.user_agent)
            fields = {"caller": caller, "user_agent": agent, "path": path}
            log_event(_log, logging.WARNING, "path_not_recommended", text, **fields)


class _LimitedLines:
    """Logs at most `MAX_LINES_PER_MINUTE` for each event and subject.

    So a flood of one event hides no other. A line after that has the number of lines before it
    that were left out. The last line is never lost: it waits for a later `flush`.
    """

    def __init__(self) -> None:
        self._written: dict[tuple[str, Hashable], deque[float]] = {}
        self.waiting: dict[tuple[str, Hashable], tuple[int, str, Fields, int]] = {}

    def add(self, level: int, event: str, subject: Hashable, text: str, fields: Fields) -> None:
        *_, left_out = self.waiting.get((event, subject), (-1,))
        self.waiting[event, subject] = (level, text, fields, left_out + 1)

    def flush(self, now: float) -> None:
        """Log the lines that the limit allows now."""
        for key, (level, text, fields, left_out) in list(self.waiting.items()):
            written = self._written.setdefault(key, deque(maxlen=MAX_LINES_PER_MINUTE))
            if len(written) == MAX_LINES_PER_MINUTE and now - written[0] < _MINUTE:
                continue
            written.append(now)
            del self.waiting[key]
            more = {"left_out": left_out} if left_out else {}
            note = f"; {left_out} changes before it were left out" if left_out else ""
            log_event(_log, level, key[0], text + note, **fields, **more)


@contextmanager
def logging_to(stream: TextIO | None, *, level: str, as_json: bool) -> Iterator[None]:
    """Send the lines of the whole process to a stream, from a thread, until the block ends.

    The thread writes to the file descriptor: a stream's buffer has a lock, and if a
    thread held it in a blocked write, the interpreter would crash at exit.

    Args:
        stream: Where lines go; None (a closed standard output) discards them.
        level: The lowest level of ghealth's lines. Of libraries, only warnings and errors are
            logged, since lower levels contain addresses and headers.
        as_json: Whether a line is a JSON object, otherwise text.
    """
    handler: logging.Handler = logging.NullHandler()
    if stream is not None:
        handler = _LineQueue(stream.fileno())
        handler.setFormatter(JsonFormatter() if as_json else TextFormatter())
        handler.addFilter(OncePerCause())
    root, ours = logging.getLogger(), logging.getLogger("ghealth")  # the root's level is WARNING
    before = ours.level
    root.addHandler(handler)
    ours.setLevel(level.upper())
    try:
        yield
    finally:
        root.removeHandler(handler)
        ours.setLevel(before)
        handler.close()


class TextFormatter(logging.Formatter):
    """Formats a record as text for a terminal: one line, and the stack below it if there is one."""

    # Times are in UTC (RFC 3339).
    converter = staticmethod(time.gmtime)
    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03dZ"

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(message)s")


class JsonFormatter(TextFormatter):
    """Formats a record as one JSON object."""

    def format(self, record: logging.LogRecord) -> str:
        """Render one line."""
        line = {
            "time": self.formatTime(record),
            "level": record.levelname.lower(),
            "event": getattr(record, "event", "message"),
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["stack"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


class OncePerCause(logging.Filter):
    """Filters repeated stacks: a bug in answering would otherwise fill the log."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: set[object] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether a line is to be written; one without a stack always is."""
        if not record.exc_info:
            return True
        error, _, trace = record.exc_info
        cause = (error, *traceback.format_tb(trace, -1))
        is_new = cause not in self._seen
        self._seen.add(cause)
        return is_new


class _LineQueue(logging.handlers.QueueHandler):
    """Queues lines for a thread that writes them, and drops lines while the queue is full."""

    def __init__(self, descriptor: int) -> None:
        self._lines: queue.Queue[logging.LogRecord | None] = queue.Queue(QUEUE_SIZE)
        super().__init__(self._lines)
        self._descriptor = descriptor
        self._dropped = 0
        self._thread = threading.Thread(target=self._write_all, name="log", daemon=True)
        self._thread.start()

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: ARG002, N802 - the base class defines it
        """Count a line that the queue has no room for."""
        self._dropped += 1  # `handle` holds a lock

    def close(self) -> None:
        """Wait a moment for the last lines to be written."""
        with suppress(queue.Full):
            self._lines.put(None, timeout=FLUSH_TIMEOUT)
        self._thread.join(FLUSH_TIMEOUT)
        super().close()

    def _write_all(self) -> None:
        failed = reported = 0
        while True:
            record = self._lines.get()
            lost = self._dropped + failed
            lines = [self._report(lost - reported)] if lost > reported else []
            lines += [] if record is None else [record.msg]  # `prepare` has formatted it
            try:
                _write(self._descriptor, "".join(f"{line}\n" for line in lines))
                reported = lost
            except OSError:
                failed += 1  # the next line that can be written reports it
            if record is None:
                return

    def _report(self, count: int) -> str:
        record: Fields = {"levelname": "WARNING", "event": "log_lines_dropped"}
        record["msg"] = f"{count} log lines were dropped: they could not be written"
        record["fields"] = {"dropped": count}
        return self.format(logging.makeLogRecord(record))


def _write(descriptor: int, text: str) -> None:
    data = text.encode(errors="backslashreplace")
    while data:
        data = data[os.write(descriptor, data) :]

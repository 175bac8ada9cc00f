"""The log: one line per event, written by a thread so that it delays no answer."""

import json
import logging
import logging.handlers
import os
import queue
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, nullcontext, suppress
from datetime import UTC, datetime
from typing import Any, Final, TextIO

from ghealth.events import (
    ConnectionsCut,
    CutReason,
    Event,
    ProbeCompleted,
    RequestAnswered,
    log_event,
)
from ghealth.health import CHECK_PATH, Status
from ghealth.observe.callers import Caller, caller_of
from ghealth.printable import printable
from ghealth.transitions import Transition, Transitions

_log = logging.getLogger(__name__)

QUEUE_SIZE: Final = 1000
"""Maximum number of lines that wait to be written; further ones are dropped and counted."""

FLUSH_TIMEOUT: Final = 0.5
"""Seconds that the end of the process waits for the last lines to be written."""

MAX_LINES_PER_MINUTE: Final = 6
"""Maximum number of lines a minute about a status or an answer that keeps changing."""

_MINUTE: Final = 60.0

MAX_PATHS: Final = 20
"""Paths that are logged because no load balancer should check them."""


class StatusLog:
    """A sink that logs each transition of a service's status.

    A status that keeps changing is limited to `MAX_LINES_PER_MINUTE`; the next line after that
    reports how many changes were not logged.

    Args:
        clock: Seconds on a monotonic clock.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._transitions = Transitions[Status]()
        self._limit = _LineLimit()

    def __call__(self, event: Event) -> None:
        """Log a probe whose status differs from the previous one."""
        if not isinstance(event, ProbeCompleted):
            return
        service, health, now = event.service, event.health, self._clock()
        transition = self._transitions.record(service, health.status, now)
        due = self._limit.due(service, transition, now)
        if due is None:
            return
        transition, left_out = due
        fields: dict[str, object] = {
            "service": service,
            "status": health.status.name,
            "reason": str(health.reason),
        }
        text = f"{service or 'gateway'} is {health.status.name}: {health.reason}"
        if transition.previous is not None:
            held = round(transition.held_seconds, 3)
            fields |= {"held_seconds": held}
            text += f" (was {transition.previous.name} for {held:g} s)"
        level = logging.INFO if health.serving else logging.WARNING
        _log_transition(level, "status_changed", text, fields, left_out)


class AnswerLog:
    """A sink that logs when the callers of one kind get another answer to the same call.

    Its lines are limited as those of `StatusLog` are.

    Args:
        services: The configured names; all others count as one.
        clock: Seconds on a monotonic clock.
    """

    def __init__(
        self, services: Collection[str], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._services = frozenset(services)
        self._clock = clock
        self._transitions = Transitions[str]()
        self._limit = _LineLimit()

    def __call__(self, event: Event) -> None:
        """Log an answer that differs from the previous one to this kind of caller."""
        if not isinstance(event, RequestAnswered):
            return
        now, name = self._clock(), event.answer.name
        caller = caller_of(event.user_agent)
        known = event.service if event.service in self._services else None
        question = (caller, event.method, known)
        transition = self._transitions.record(question, name, now)
        if transition is not None and transition.previous is None:
            return
        due = self._limit.due(question, transition, now)
        if due is None:
            return
        transition, left_out = due
        held = round(transition.held_seconds, 3)
        reason = "" if event.answer.reason is None else printable(str(event.answer.reason), 200)
        fields: dict[str, object] = {
            "caller": caller,
            "user_agent": printable(event.user_agent),
            "method": event.method,
            "service": known,
            "answer": name,
            "reason": reason,
            "held_seconds": held,
        }
        about = "" if known is None else f" of {known or 'gateway'}"
        text = f"{caller} gets {name} from {event.method}{about}"
        text += f": {reason}" if reason else ""
        text += f" (got {transition.previous} for {held:g} s)"
        level = logging.INFO if event.answer.good else logging.WARNING
        _log_transition(level, "answer_changed", text, fields, left_out)


class PathLog:
    """A sink that logs each path that a load balancer should not check, once."""

    def __init__(self) -> None:
        self._logged: set[str] = set()

    def __call__(self, event: Event) -> None:
        """Log a path that is not served, or a path other than Check that an ALB calls."""
        if not isinstance(event, RequestAnswered) or event.method == "Check":
            return
        caller = caller_of(event.user_agent)
        if event.method != "other" and caller is not Caller.ALB:
            return
        path = printable(event.path)
        if path in self._logged or len(self._logged) >= MAX_PATHS:
            return
        self._logged.add(path)
        log_event(
            _log,
            logging.WARNING,
            "path_not_recommended",
            f"{caller} checks {path}: use the path {CHECK_PATH} with the matcher 0",
            caller=caller,
            user_agent=printable(event.user_agent),
            path=path,
        )


_SHORT: Final[dict[CutReason, str]] = {
    "calls": "too many calls",
    "connections": "too many connections",
    "memory": "memory is short",
}


class CutLog:
    """A sink that logs each address whose connections were cut, at most `MAX_LINES_PER_MINUTE`.

    Args:
        clock: Seconds on a monotonic clock.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._written: deque[float] = deque(maxlen=MAX_LINES_PER_MINUTE)
        self._left_out = 0

    def __call__(self, event: Event) -> None:
        """Log an address that held too much."""
        if not isinstance(event, ConnectionsCut):
            return
        now = self._clock()
        if len(self._written) == MAX_LINES_PER_MINUTE and now - self._written[0] < _MINUTE:
            self._left_out += 1
            return
        self._written.append(now)
        left_out, self._left_out = self._left_out, 0
        text = f"cut {event.count} connections of {event.address}: {_SHORT[event.reason]}"
        text += f"; {left_out} addresses before it were left out" if left_out else ""
        log_event(
            _log,
            logging.WARNING,
            "connections_cut",
            text,
            address=event.address,
            count=event.count,
            reason=event.reason,
            left_out=left_out,
        )


class _LineLimit:
    """Limits the lines about each key to `MAX_LINES_PER_MINUTE`.

    The last change is never lost: it has its line as soon as the limit allows one again.
    """

    def __init__(self) -> None:
        self._written: dict[object, deque[float]] = {}
        self._left_out: dict[object, tuple[Transition[Any], int]] = {}

    def due(
        self, key: object, change: Transition[Any] | None, now: float
    ) -> tuple[Transition[Any], int] | None:
        """Return the change to log now, and the number of unlogged changes before it."""
        if change is None and not self._left_out:
            return None
        waiting, left_out = self._left_out.get(key, (None, 0))
        latest = change or waiting
        if latest is None:
            return None
        written = self._written.setdefault(key, deque(maxlen=MAX_LINES_PER_MINUTE))
        if len(written) == MAX_LINES_PER_MINUTE and now - written[0] < _MINUTE:
            self._left_out[key] = (latest, left_out + (change is not None))
            return None
        self._left_out.pop(key, None)
        written.append(now)
        return latest, left_out - (change is None)


def _log_transition(
    level: int, event: str, text: str, fields: dict[str, object], left_out: int
) -> None:
    if left_out:
        fields |= {"left_out": left_out}
        text += f"; {left_out} changes before it were left out"
    log_event(_log, level, event, text, **fields)


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
    root, ours = logging.getLogger(), logging.getLogger("ghealth")
    before = root.level, ours.level
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    ours.setLevel(level.upper())
    try:
        yield
    finally:
        root.removeHandler(handler)
        root.setLevel(before[0])
        ours.setLevel(before[1])
        handler.close()


class JsonFormatter(logging.Formatter):
    """Formats a record as one JSON object."""

    def format(self, record: logging.LogRecord) -> str:
        """Render one line.

        Args:
            record: The line.
        """
        line = {
            "time": _timestamp(record),
            "level": record.levelname.lower(),
            "event": getattr(record, "event", "message"),
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["stack"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


class TextFormatter(logging.Formatter):
    """Formats a record as text for a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        """Render one line, and the stack below it if there is one.

        Args:
            record: The line.
        """
        line = f"{_timestamp(record)} {record.levelname:<7} {record.getMessage()}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class OncePerCause(logging.Filter):
    """Filters repeated stacks: a bug in answering would otherwise fill the log."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: set[tuple[type[BaseException], str, int]] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether a line is to be written.

        Args:
            record: The line; one without a stack always is.
        """
        if not record.exc_info or record.exc_info[0] is None or record.exc_info[2] is None:
            return True
        *_, (innermost, line) = traceback.walk_tb(record.exc_info[2])
        cause = (record.exc_info[0], innermost.f_code.co_filename, line)
        if cause in self._seen:
            return False
        self._seen.add(cause)
        return True


class _LineQueue(logging.handlers.QueueHandler):
    """Queues lines for a thread that writes them, and drops lines while the queue is full."""

    def __init__(self, descriptor: int) -> None:
        self._lines: queue.Queue[str | None] = queue.Queue(QUEUE_SIZE)
        super().__init__(self._lines)
        self._descriptor = descriptor
        self._dropped = 0
        self._thread = threading.Thread(target=self._write_all, name="log", daemon=True)
        self._thread.start()

    def enqueue(self, record: logging.LogRecord) -> None:
        """Queue a line that `prepare` has formatted, or count it as dropped."""
        try:
            self._lines.put_nowait(record.msg)
        except queue.Full:
            self._dropped += 1

    def close(self) -> None:
        """Wait a moment for the last lines to be written."""
        with suppress(queue.Full):
            self._lines.put(None, timeout=FLUSH_TIMEOUT)
        self._thread.join(FLUSH_TIMEOUT)
        super().close()

    def _write_all(self) -> None:
        line: str | None = ""
        while line is not None:
            line = self._lines.get()
            with self.lock or nullcontext():
                dropped, self._dropped = self._dropped, 0
            lines = [self._dropped_line(dropped)] if dropped else []
            lines += [] if line is None else [line]
            try:
                _write(self._descriptor, "".join(f"{line}\n" for line in lines))
            except OSError:
                # The next line that can be written reports the number of dropped lines.
                with self.lock or nullcontext():
                    self._dropped += dropped + 1

    def _dropped_line(self, count: int) -> str:
        fields = {"dropped": count}
        return self.format(
            logging.makeLogRecord(
                {
                    "levelno": logging.WARNING,
                    "levelname": "WARNING",
                    "msg": f"{count} log lines were dropped: they could not be written",
                    "event": "log_lines_dropped",
                    "fields": fields,
                }
            )
        )


def _write(descriptor: int, text: str) -> None:
    data = text.encode(errors="backslashreplace")
    while data:
        data = data[os.write(descriptor, data) :]


def _timestamp(record: logging.LogRecord) -> str:
    """Format a record's time in UTC (RFC 3339)."""
    moment = datetime.fromtimestamp(record.created, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")

"""Lines about what happens, written where they can never hold up an answer."""

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

from ghealth.callers import GOOD, caller_of, presentable
from ghealth.changes import Change, Changes
from ghealth.observer import Observer
from ghealth.status import Health, Status

_log = logging.getLogger(__name__)

QUEUE_SIZE: Final = 1000
"""Lines that wait at most for a reader of the log; further ones are dropped and counted."""

FLUSH_PATIENCE: Final = 0.5
"""Seconds that the end of the process waits for the last lines to be taken."""


LINES_A_MINUTE: Final = 6
"""Lines about the changes of one thing that are written in a minute, however often it flaps."""

_MINUTE: Final = 60.0


class StatusLog(Observer):
    """Writes one line for each change of a service's status, and none for a good check.

    A service that flaps has `LINES_A_MINUTE`; then the next line tells how many were left out.

    Args:
        clock: Seconds on a clock that nobody can set back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._changes = Changes[Status]()
        self._sparing = _Sparing()

    def probed(self, service: str, health: Health, seconds: float) -> None:  # noqa: ARG002
        """Write a line if the status is another than before."""
        now = self._clock()
        change = self._changes.change(service, health.status, now)
        due = self._sparing.due(service, change, now)
        if due is None:
            return
        change, left_out = due
        fields: dict[str, object] = {
            "service": service,
            "status": health.status.name,
            "reason": health.reason,
        }
        text = f"{service or 'gateway'} is {health.status.name}: {health.reason}"
        if change.previous is not None:
            held = round(change.held_seconds, 3)
            fields |= {"held_seconds": held}
            text += f" (was {change.previous.name} for {held:g} s)"
        level = logging.INFO if health.status is Status.SERVING else logging.WARNING
        _log_change(level, "status_changed", text, fields, left_out)


class AnswerLog(Observer):
    """Writes one line when callers of one kind start to get another answer to one question.

    It spares the log as `StatusLog` does.

    Args:
        services: The names that are known; all others count as one.
        clock: Seconds on a clock that nobody can set back.
    """

    def __init__(
        self, services: Collection[str], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._services = frozenset(services)
        self._clock = clock
        self._changes = Changes[str]()
        self._sparing = _Sparing()

    def answered(
        self, method: str, user_agent: str, service: str | None, answer: str, reason: str
    ) -> None:
        """Write a line if the answer is another than such callers got before."""
        now = self._clock()
        caller = caller_of(user_agent)
        known = service if service in self._services else None
        question = (caller, method, known)
        change = self._changes.change(question, answer, now)
        if change is not None and change.previous is None:
            return
        due = self._sparing.due(question, change, now)
        if due is None:
            return
        change, left_out = due
        held = round(change.held_seconds, 3)
        fields: dict[str, object] = {
            "caller": caller,
            "user_agent": presentable(user_agent),
            "method": method,
            "service": known,
            "answer": answer,
            "reason": reason,
            "held_seconds": held,
        }
        about = "" if known is None else f" of {known or 'gateway'}"
        text = f"{caller} gets {answer} from {method}{about}: {reason}"
        text += f" (got {change.previous} for {held:g} s)"
        level = logging.INFO if answer in GOOD else logging.WARNING
        _log_change(level, "answer_changed", text, fields, left_out)


class _Sparing:
    """Decides which changes have a line: `LINES_A_MINUTE` for each thing.

    The last change is never lost: it has its line as soon as there may be one again.
    """

    def __init__(self) -> None:
        self._written: dict[object, deque[float]] = {}
        self._left_out: dict[object, tuple[Change[Any], int]] = {}

    def due(
        self, key: object, change: Change[Any] | None, now: float
    ) -> tuple[Change[Any], int] | None:
        """Tell the change that is to be written now, and how many before it were not."""
        if change is None and not self._left_out:
            return None
        waiting, left_out = self._left_out.get(key, (None, 0))
        latest = change or waiting
        if latest is None:
            return None
        written = self._written.setdefault(key, deque(maxlen=LINES_A_MINUTE))
        if len(written) == LINES_A_MINUTE and now - written[0] < _MINUTE:
            self._left_out[key] = (latest, left_out + (change is not None))
            return None
        self._left_out.pop(key, None)
        written.append(now)
        return latest, left_out - (change is None)


def _log_change(
    level: int, event: str, text: str, fields: dict[str, object], left_out: int
) -> None:
    if left_out:
        fields |= {"left_out": left_out}
        text += f"; {left_out} changes before it were left out"
    log_event(_log, level, event, text, **fields)


def log_event(logger: logging.Logger, level: int, event: str, text: str, **fields: object) -> None:
    """Write one line about something that happened.

    Args:
        logger: Who says it.
        level: How much it matters, as in `logging`.
        event: The stable name of what happened: the JSON key `event`.
        text: The same for people: the JSON key `message`.
        fields: What else a program may want to know, a JSON key each.
    """
    logger.log(level, "%s", text, extra={"event": event, "fields": fields})


@contextmanager
def logging_to(stream: TextIO | None, *, level: str, as_json: bool) -> Iterator[None]:
    """Send the lines of the whole process to `stream`, from a thread of its own, until the end.

    The thread writes to the file descriptor: a stream's buffer has a lock, and a thread stuck in
    a write with that lock held would turn the end of the interpreter into a crash.

    Args:
        stream: Where lines go; None (a closed standard output) discards them.
        level: The least of ghealth's own lines; libraries' lines are shown from warnings up,
            since on lower levels they would name addresses and headers.
        as_json: One JSON object a line, or text for people.
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
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """Render one line.

        Args:
            record: What to say.
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
    """Lines for a person at a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        """Render one line, and the stack below it where there is one.

        Args:
            record: What to say.
        """
        line = f"{_timestamp(record)} {record.levelname:<7} {record.getMessage()}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class OncePerCause(logging.Filter):
    """Lets the stack of one bug through once: a bug in answering would fill the log otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: set[tuple[type[BaseException], str, int]] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        """Tell whether a line is to be written.

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
    """Hands finished lines to a thread that writes them, and drops what the thread cannot take."""

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
        """Give the last lines a moment to be taken."""
        with suppress(queue.Full):
            self._lines.put(None, timeout=FLUSH_PATIENCE)
        self._thread.join(FLUSH_PATIENCE)
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
                # Nobody to tell: the next line that gets through says how many did not.
                with self.lock or nullcontext():
                    self._dropped += dropped + 1

    def _dropped_line(self, count: int) -> str:
        fields = {"dropped": count}
        return self.format(
            logging.makeLogRecord(
                {
                    "levelno": logging.WARNING,
                    "levelname": "WARNING",
                    "msg": f"{count} log lines were dropped: nobody took them",
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
    """Render a line's time in UTC, as RFC 3339 has it."""
    moment = datetime.fromtimestamp(record.created, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")

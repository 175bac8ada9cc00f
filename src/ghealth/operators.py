"""What the operators' port answers: the page, the history, the metrics, and that it lives."""

import asyncio
import functools
import json
import socket
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime
from typing import Any, Final

from ghealth import __version__, http_port, page, reasons
from ghealth.callers import GOOD, conclusion, presentable
from ghealth.checker import Checker
from ghealth.history import History
from ghealth.http_port import TEXT, Response
from ghealth.metrics import Metrics
from ghealth.observer import Observer
from ghealth.settings import Row
from ghealth.status import Health, Status

PATIENCE: Final = 5.0
"""Seconds that a scrape waits for the gateway; Prometheus' own patience is 10 s by default."""

JSON: Final = "application/json"
HTML: Final = "text/html; charset=utf-8"


Watchers = Callable[[], Mapping[str, int]]
"""Tells how many watch each service, by the names that they gave."""


class Operators:
    """Answers what operators ask. Asking for the state is asking the checker, as any caller does.

    Args:
        services: The names of all services.
        probe_timeout: Seconds that an attempt may take.
        settings: What is in force, secrets masked.
        now: Seconds since 1970.
    """

    def __init__(
        self,
        services: Collection[str],
        *,
        probe_timeout: float,
        settings: Sequence[Row],
        now: Callable[[], float] = time.time,
    ) -> None:
        self._metrics = Metrics(services, probe_timeout=probe_timeout, now=now)
        self._history = History(services, now=now)
        self._settings = settings
        self._now = now
        self._started = now()

    @property
    def observers(self) -> tuple[Observer, ...]:
        """Who has to be told of what happens."""
        return (self._metrics, self._history)

    def serving(
        self, sockets: Sequence[socket.socket], checker: Checker, watchers: Watchers
    ) -> AbstractAsyncContextManager[None]:
        """Answer on the operators' port until the end of the block.

        Args:
            sockets: Bound ones; they are closed at the end.
            checker: Knows the health of every service.
            watchers: Tells how many watch each.
        """
        return http_port.serving(sockets, functools.partial(self.respond, checker, watchers))

    async def respond(
        self, checker: Checker, watchers: Watchers, path: str, accept: str
    ) -> Response | None:
        """Answer a GET.

        Args:
            checker: Knows the health of every service.
            watchers: Tells how many watch each.
            path: What is asked for.
            accept: The header of this name.

        Returns:
            None for a path that there is not.
        """
        match path:
            case "/livez":
                return Response(TEXT, b"ok\n")
            case "/metrics":
                healths = await _healths(checker)
                # A hundred services take tens of milliseconds, which no answer is to wait for.
                rendered = self._metrics.rendered
                return Response(
                    *await asyncio.to_thread(rendered, accept, healths, dict(watchers()))
                )
            case "/history.json":
                snapshot = json.dumps(
                    await self._snapshot(checker, watchers()), ensure_ascii=False, indent=1
                )
                return Response(JSON, snapshot.encode())
            case "/":
                html = page.rendered(await self._snapshot(checker, watchers()))
                return Response(HTML, html.encode(), headers=page.HEADERS)
            case _:
                return None

    async def _snapshot(self, checker: Checker, watchers: Mapping[str, int]) -> dict[str, Any]:
        """Tell all that is known, for programs; the page shows the same."""
        healths = await _healths(checker)
        history = self._history
        return {
            "version": __version__,
            "time": _iso(self._now()),
            "started": _iso(self._started),
            "draining": checker.draining,
            "services": [
                {
                    "service": service,
                    "status": health.status.name,
                    "reason": health.reason,
                    "since": _iso(history.since(service, health.status)),
                    "watchers": watchers.get(service, 0),
                }
                for service, health in healths.items()
            ],
            "changes": [
                {
                    "time": _iso(change.time),
                    "service": change.service,
                    "status": change.health.status.name,
                    "reason": change.health.reason,
                    "held_seconds": change.held_seconds and round(change.held_seconds, 3),
                }
                for change in history.changes
            ],
            "probes": [
                {
                    "time": _iso(probe.time),
                    "service": probe.service,
                    "result": reasons.result_of(
                        probe.health.reason, ready=probe.health.status is Status.SERVING
                    ),
                    "reason": probe.health.reason,
                    "seconds": round(probe.seconds, 6),
                }
                for probe in history.probes
            ],
            "answers": [
                {
                    "time": _iso(answer.time),
                    "caller": answer.caller,
                    "user_agent": presentable(answer.user_agent),
                    "method": answer.method,
                    "service": answer.service,
                    "answer": answer.answer,
                    "good": answer.answer in GOOD,
                    "reason": answer.reason,
                    "concludes": conclusion(answer.caller, answer.method, answer.answer),
                }
                for answer in history.answers
            ],
            "settings": [
                {"variable": row.variable, "value": row.value, "default": row.default}
                for row in self._settings
            ],
        }


async def _healths(checker: Checker) -> Mapping[str, Health]:
    services = checker.services
    checks = (checker.check(service, patience=PATIENCE) for service in services)
    return dict(zip(services, await asyncio.gather(*checks), strict=True))


def _iso(moment: float | None) -> str | None:
    """Render a moment in UTC, as RFC 3339 has it."""
    if moment is None:
        return None
    told = datetime.fromtimestamp(moment, UTC).isoformat(timespec="milliseconds")
    return told.replace("+00:00", "Z")

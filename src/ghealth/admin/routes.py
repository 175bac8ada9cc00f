"""The admin endpoints: status page, history, metrics and health over HTTP."""

import asyncio
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from http import HTTPStatus
from typing import Any, Final, TypeVar
from urllib.parse import parse_qs

from ghealth import __version__
from ghealth.admin.http import Request, Response, line
from ghealth.admin.page import Page
from ghealth.checker import Checker
from ghealth.events import RequestAnswered
from ghealth.health import GATEWAY, Status
from ghealth.observe.callers import caller_of, conclusion
from ghealth.observe.history import History, Recorded
from ghealth.observe.metrics import Metrics, result_of
from ghealth.printable import printable
from ghealth.settings import Row

CHECK_TIMEOUT: Final = 5.0
"""Seconds that a request waits for the gateway; Prometheus' default `scrape_timeout` is 10 s."""

SCRAPE_MARGIN: Final = 0.5
"""Seconds of a scraper's time limit that are left to render and send the answer."""

JSON: Final = "application/json"
HTML: Final = "text/html; charset=utf-8"

Rendered = TypeVar("Rendered")

Watchers = Callable[[], Mapping[str, int]]
"""Returns the number of open watches by the service name in the request, known or not."""


@dataclass(frozen=True, slots=True)
class About:
    """Values that do not change while ghealth runs.

    Args:
        host: The name of this pod or machine.
        started: When it started, in seconds since 1970.
        settings: The settings in force, secrets masked.
        targets: The URLs that are probed for each service, secrets masked.
    """

    host: str
    started: float
    settings: Sequence[Row]
    targets: Mapping[str, Sequence[str]]


class Routes:
    """Answers requests to the admin port. Read-only: it checks as any caller does.

    Args:
        checker: Returns the health of every service.
        watchers: Returns the number of open watches.
        metrics: Rendered for `/metrics`.
        history: Shown on the page.
        about: Shown on the page too.
        renderer: Renders answers; with one thread, requests cannot take the CPU from checks.
        now: Seconds since 1970.
    """

    def __init__(
        self,
        *,
        checker: Checker,
        watchers: Watchers,
        metrics: Metrics,
        history: History,
        about: About,
        renderer: Executor,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._checker = checker
        self._watchers = watchers
        self._metrics = metrics
        self._history = history
        self._page = Page()
        self._about = about
        self._renderer = renderer
        self._now = now

    async def __call__(self, request: Request) -> Response | None:
        """Answer a request.

        Args:
            request: The request.

        Returns:
            None for an unknown path.
        """
        match request.path:
            case "/":
                return await self._status(request)
            case "/history.json":
                return await self._rendered(partial(_as_json, await self._snapshot()))
            case "/metrics":
                return await self._scrape(request)
            case "/livez":
                return line("ok")
            case "/readyz":
                return await self._ready(request)
            case _:
                return None

    async def _status(self, request: Request) -> Response:
        """Serve the page."""
        snapshot = await self._snapshot()
        refreshes = parse_qs(request.query).get("refresh") != ["off"]
        html = await self._rendered(partial(self._page.render, snapshot, refreshes=refreshes))
        return Response(HTML, html.encode(), headers=self._page.headers)

    async def _scrape(self, request: Request) -> Response:
        """Serve the metrics."""
        healths = await self._checker.check_all(timeout=_scrape_timeout(request.headers))
        accept = request.headers.get("accept", "")
        watchers = dict(self._watchers())
        render = partial(self._metrics.render, accept, healths, watchers)
        return Response(*await self._rendered(render))

    async def _ready(self, request: Request) -> Response:
        """Report one service's health by the HTTP status code."""
        services = parse_qs(request.query, keep_blank_values=True).get("service", [GATEWAY])
        if len(services) > 1:
            return line("expected one service", HTTPStatus.BAD_REQUEST)
        health = await self._checker.check(services[0], timeout=CHECK_TIMEOUT)
        match health.status:
            case Status.SERVING:
                status = HTTPStatus.OK
            case Status.SERVICE_UNKNOWN:
                status = HTTPStatus.NOT_FOUND
            case _:
                status = HTTPStatus.SERVICE_UNAVAILABLE
        return line(str(health.reason), status)

    async def _rendered(self, render: Callable[[], Rendered]) -> Rendered:
        """Render in the renderer's thread: with many services it takes tens of milliseconds."""
        return await asyncio.get_running_loop().run_in_executor(self._renderer, render)

    async def _snapshot(self) -> dict[str, Any]:
        """Return everything that the page shows, as values for JSON."""
        healths = await self._checker.check_all(timeout=CHECK_TIMEOUT)
        watchers = self._watchers()
        history = self._history
        return {
            "version": __version__,
            "host": self._about.host,
            "time": _iso(self._now()),
            "started": _iso(self._about.started),
            "draining": self._checker.draining,
            "draining_since": _iso(history.draining_since),
            "services": [
                {
                    "service": service,
                    "status": health.status.name,
                    "reason": str(health.reason),
                    "targets": list(self._about.targets.get(service, ())),
                    "since": _iso(history.since(service, health.status)),
                    "watchers": watchers.get(service, 0),
                }
                for service, health in healths.items()
            ],
            "callers": [
                {
                    "caller": summary.caller,
                    "last_asked": None if summary.last is None else _iso(summary.last.time),
                    "last_five_minutes": summary.recent,
                    **_answer(summary.last),
                }
                for summary in history.callers
            ],
            "changes": [
                {
                    "time": _iso(change.time),
                    "service": change.service,
                    "status": change.health.status.name,
                    "reason": str(change.health.reason),
                    "held_seconds": change.held_seconds and round(change.held_seconds, 3),
                }
                for change in history.changes
            ],
            "probes": [
                {
                    "time": _iso(probe.time),
                    "service": probe.event.service,
                    "result": result_of(probe.event.health),
                    "reason": str(probe.event.health.reason),
                    "seconds": round(probe.event.seconds, 6),
                }
                for probe in history.probes
            ],
            "answers": [
                {
                    "time": _iso(answer.time),
                    "caller": caller_of(answer.event.user_agent),
                    **_answer(answer),
                }
                for answer in history.answers
            ],
            "settings": [
                {"variable": row.variable, "value": row.value, "default": row.default}
                for row in self._about.settings
            ],
        }


_ANSWER_KEYS: Final = (
    "user_agent",
    "method",
    "path",
    "service",
    "answer",
    "good",
    "reason",
    "concludes",
)


def _answer(recorded: Recorded[RequestAnswered] | None) -> dict[str, Any]:
    """Describe an answer and the request; every value is None if there was no request."""
    if recorded is None:
        return dict.fromkeys(_ANSWER_KEYS)
    event, answer = recorded.event, recorded.event.answer
    values = (
        printable(event.user_agent),
        event.method,
        printable(event.path),
        event.service,
        answer.name,
        answer.good,
        str(answer.reason or ""),
        conclusion(caller_of(event.user_agent), event.method, answer),
    )
    return dict(zip(_ANSWER_KEYS, values, strict=True))


def _as_json(snapshot: Mapping[str, Any]) -> Response:
    return Response(JSON, json.dumps(snapshot, ensure_ascii=False, indent=1).encode())


def _scrape_timeout(headers: Mapping[str, str]) -> float:
    """Return the seconds that a scrape can wait for the gateway.

    The samples matter most while the gateway hangs, so the answer must arrive within the scraper's
    time limit.
    """
    try:
        limit = float(headers.get("x-prometheus-scrape-timeout-seconds", ""))
    except ValueError:
        return CHECK_TIMEOUT
    if math.isnan(limit):
        return CHECK_TIMEOUT
    # A limit below a second is shared.
    return min(CHECK_TIMEOUT, max(limit - SCRAPE_MARGIN, limit / 2, 0.0))


def _iso(moment: float | None) -> str | None:
    """Format a moment in UTC (RFC 3339)."""
    if moment is None:
        return None
    text = datetime.fromtimestamp(moment, UTC).isoformat(timespec="milliseconds")
    return text.replace("+00:00", "Z")

"""The admin endpoints: status page, history, metrics and health over HTTP."""

import asyncio
import json
import math
import socket
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import parse_qs

from ghealth import __version__
from ghealth.admin import http, page
from ghealth.admin.http import Headers, Response, encoded, line
from ghealth.checker import Checker
from ghealth.events import ConnectionsCut, ProbeCompleted, Sink, StatusChanged
from ghealth.health import GATEWAY, Status
from ghealth.observe.callers import Caller, describe
from ghealth.observe.history import History, Recorded
from ghealth.observe.metrics import Metrics, result_of
from ghealth.printable import printable
from ghealth.settings import Row

CHECK_TIMEOUT: Final = 5.0
"""Seconds that a request waits for the gateway; Prometheus' default `scrape_timeout` is 10 s."""

SCRAPE_MARGIN: Final = 0.5
"""Seconds of a scraper's time limit that are left to render and send the answer."""

Watchers = Callable[[], Mapping[str, int]]
"""Returns the number of open watches by the service name in the request, known or not."""


class Admin:
    """Records events, and serves them on the admin port. Read-only: it checks as any caller does.

    Args:
        settings: The settings in force, secrets masked.
        targets: The URLs that are probed for each service, secrets masked; it has every service,
            also those without a target.
        probe_timeout: Seconds that a probe may take.
    """

    def __init__(
        self,
        settings: Sequence[Row],
        targets: Mapping[str, Sequence[str]],
        *,
        probe_timeout: float,
    ) -> None:
        self._settings = settings
        self._targets = targets
        self._host = printable(socket.gethostname())  # in a pod, its name
        self._started = time.time()
        self._metrics = Metrics(targets, probe_timeout=probe_timeout)
        self._history = History(targets)
        # Rendering takes tens of milliseconds with many services. With one thread, requests cannot
        # take the CPU from checks.
        self._renderer = ThreadPoolExecutor(1, thread_name_prefix="admin")

    @property
    def sinks(self) -> tuple[Sink, ...]:
        """The sinks that must receive every event."""
        return (self._metrics, self._history)

    @asynccontextmanager
    async def serving(
        self, sockets: Sequence[socket.socket], checker: Checker, watchers: Watchers
    ) -> AsyncGenerator[None, None]:
        """Serve until the end of the block.

        Args:
            sockets: Bound sockets; they are closed at the end.
            checker: Returns the health of every service.
            watchers: Returns the number of open watches by the service name in the request.
        """
        try:
            async with http.serving(sockets, partial(self._respond, checker, watchers)):
                yield
        finally:
            self._renderer.shutdown(wait=False, cancel_futures=True)

    async def _respond(
        self, checker: Checker, watchers: Watchers, path: str, query: str, headers: Headers
    ) -> Response | None:
        match path:
            case "/":
                snapshot = await self._snapshot(checker, watchers)
                refreshes = parse_qs(query).get("refresh") != ["off"]
                return await self._rendered(partial(_as_html, snapshot, refreshes=refreshes))
            case "/history.json":
                snapshot = await self._snapshot(checker, watchers)
                return await self._rendered(partial(_as_json, snapshot))
            case "/metrics":
                healths = await checker.check_all(timeout=_scrape_timeout(headers))
                accept, watches = headers.get("accept", ""), dict(watchers())
                render = partial(self._metrics.render, accept, healths, watches)
                return await self._rendered(lambda: Response(*render()))
            case "/livez":
                return line("ok")
            case "/readyz":
                return await _ready(checker, query)
        return None

    async def _rendered(self, render: Callable[[], Response]) -> Response:
        return await asyncio.get_running_loop().run_in_executor(self._renderer, render)

    async def _snapshot(self, checker: Checker, watchers: Watchers) -> dict[str, Any]:
        """Return everything that the page shows, as values for JSON."""
        healths = await checker.check_all(timeout=CHECK_TIMEOUT)
        watches, history = watchers(), self._history
        return {
            "version": __version__,
            "host": self._host,
            "time": _iso(time.time()),
            "started": _iso(self._started),
            "draining": checker.draining,
            "draining_since": _iso(history.draining_since),
            "services": [
                {
                    "service": service,
                    "status": health.status.name,
                    "reason": str(health.reason),
                    "targets": list(self._targets.get(service, ())),
                    "since": _iso(history.since(service, health.status)),
                    "watchers": watches.get(service, 0),
                }
                for service, health in healths.items()
            ],
            "callers": [
                {"caller": caller, "last_five_minutes": history.recent(caller)}
                | _row(history.last.get(caller), "last_asked")
                for caller in Caller
            ],
            "changes": [_row(change) for change in history.changes],
            "cuts": [_row(cut) for cut in history.cuts],
            "probes": [_row(probe) for probe in history.probes],
            "answers": [_row(answer) for answer in history.answers],
            "settings": [
                {"variable": row.variable, "value": row.value, "default": row.default}
                for row in self._settings
            ],
        }


async def _ready(checker: Checker, query: str) -> Response:
    """Report one service's health by the HTTP status code."""
    services = parse_qs(query, keep_blank_values=True).get("service", [GATEWAY])
    if len(services) > 1:
        return line("expected one service", HTTPStatus.BAD_REQUEST)
    health = await checker.check(services[0], timeout=CHECK_TIMEOUT)
    codes = {Status.SERVING: HTTPStatus.OK, Status.SERVICE_UNKNOWN: HTTPStatus.NOT_FOUND}
    return line(str(health.reason), codes.get(health.status, HTTPStatus.SERVICE_UNAVAILABLE))


def _row(recorded: Recorded[Any] | None, time_key: str = "time") -> dict[str, Any]:
    """Return an event and its time as values for JSON."""
    if recorded is None:
        return {time_key: None}
    values: dict[str, Any]
    match recorded.event:
        case ProbeCompleted(service=service, health=health, seconds=seconds):
            values = {"service": service, "result": result_of(health), "reason": str(health.reason)}
            values["seconds"] = round(seconds, 6)
        case StatusChanged(service=service, health=health, previous=previous, held_seconds=held):
            values = {
                "service": service,
                "status": health.status.name,
                "reason": str(health.reason),
            }
            values["held_seconds"] = None if previous is None else round(held, 3)
        case ConnectionsCut() as cut:
            values = asdict(cut)
        case answered:
            values = describe(answered)
    return {time_key: _iso(recorded.time), **values}


def _as_html(snapshot: Mapping[str, Any], *, refreshes: bool) -> Response:
    html = page.render(snapshot, refreshes=refreshes)
    return Response("text/html; charset=utf-8", encoded(html), headers=page.headers())


def _as_json(snapshot: Mapping[str, Any]) -> Response:
    return Response("application/json", encoded(json.dumps(snapshot, ensure_ascii=False, indent=1)))


def _scrape_timeout(headers: Headers) -> float:
    """Return the seconds that a scrape can wait for the gateway.

    The samples matter most while the gateway hangs, so the answer must arrive within the scraper's
    time limit.
    """
    try:
        limit = float(headers.get("x-prometheus-scrape-timeout-seconds", "inf"))
    except ValueError:
        limit = math.inf
    # A limit below a second is shared. The minimum of a number and nan is the number.
    return min(CHECK_TIMEOUT, max(limit - SCRAPE_MARGIN, limit / 2, 0.0))


def _iso(moment: float | None) -> str | None:
    """Format a moment in UTC (RFC 3339)."""
    if moment is None:
        return None
    text = datetime.fromtimestamp(moment, UTC).isoformat(timespec="milliseconds")
    return text.replace("+00:00", "Z")

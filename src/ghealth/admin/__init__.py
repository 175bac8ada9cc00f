"""The admin port: status page, history, metrics and health over HTTP."""

import socket
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

from ghealth.admin import http
from ghealth.admin.routes import About, Routes, Watchers
from ghealth.checker import Checker
from ghealth.events import Sink
from ghealth.observe.history import History
from ghealth.observe.metrics import Metrics
from ghealth.printable import printable
from ghealth.settings import Row

__all__ = ["Admin"]


class Admin:
    """Records events, and serves them on the admin port.

    Args:
        settings: The settings in force, secrets masked.
        targets: The URLs that are probed for each service, secrets masked; it has every service,
            also those without a target.
        probe_timeout: Seconds that a probe may take.
        host: The name of this pod or machine; None for its host name.
        now: Seconds since 1970.
        clock: Seconds on a monotonic clock.
    """

    def __init__(
        self,
        settings: Sequence[Row],
        targets: Mapping[str, Sequence[str]],
        *,
        probe_timeout: float,
        host: str | None = None,
        now: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._metrics = Metrics(targets, probe_timeout=probe_timeout, now=now)
        self._history = History(targets, now=now, clock=clock)
        self._about = About(
            host=printable(socket.gethostname()) if host is None else host,
            started=now(),
            settings=settings,
            targets=targets,
        )
        self._now = now

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
        renderer = ThreadPoolExecutor(1, thread_name_prefix="admin")
        routes = Routes(
            checker=checker,
            watchers=watchers,
            metrics=self._metrics,
            history=self._history,
            about=self._about,
            renderer=renderer,
            now=self._now,
        )
        try:
            async with http.serving(sockets, routes, now=self._now):
                yield
        finally:
            renderer.shutdown(wait=False, cancel_futures=True)

"""Decides the health of every service at each moment."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from dataclasses import dataclass, field

from ghealth.events import ProbeCompleted, Sink, StatusChanged
from ghealth.health import (
    ALIVE,
    DEADLINE,
    DRAINING,
    INTERNAL_ERROR,
    LIVENESS,
    UNKNOWN_SERVICE,
    Health,
    Status,
)
from ghealth.probe import Probe, ProbeResult

_log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Service:
    """A service with a probe: its last result, and what waits for the next one."""

    name: str
    probe: Probe
    health: Health | None = None
    status_since: float = 0.0
    reason_since: float = 0.0
    fresh_until: float = float("-inf")
    probing: asyncio.Task[None] | None = None
    looking: asyncio.Task[None] | None = None
    # A future each, not one that all share: removing a waiter from a shared one takes time in
    # proportion to all the others.
    waiters: set[asyncio.Future[Health]] = field(default_factory=set)
    watchers: set[asyncio.Event] = field(default_factory=set)


class Checker:
    """Keeps the promise: never SERVING unless the target was ready within the last moment.

    Simultaneous callers share one probe, its result serves every caller while it is fresh, and
    without callers nothing is probed. Create it inside a running event loop.

    Args:
        probes: The probe of each service; each must return in bounded time. `liveness` has none.
        cache_ttl: Seconds for which a result, good or bad, serves every caller, counted from the
            start of its probe. With 0 each caller probes, or shares the probe under way.
        watch_interval: Seconds between two probes while a service is watched.
        emit: Receives `ProbeCompleted` and `StatusChanged`; it must not raise.
        clock: Seconds on a monotonic clock.
    """

    def __init__(
        self,
        probes: Mapping[str, Probe],
        *,
        cache_ttl: float,
        watch_interval: float,
        emit: Sink,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._services = {name: _Service(name, probe) for name, probe in probes.items()}
        self._cache_ttl = cache_ttl
        self._watch_interval = watch_interval
        self._emit = emit
        self._clock = clock
        self._draining = False
        self._watches_ended = False
        self._closed = False
        self._settled_watchers: set[asyncio.Event] = set()

    @property
    def services(self) -> tuple[str, ...]:
        """The names of all services, the gateway first."""
        return (*self._services, LIVENESS)

    @property
    def draining(self) -> bool:
        """Whether every service but `liveness` is not serving, whatever its target answers."""
        return self._draining

    async def check(self, name: str, *, timeout: float | None = None) -> Health:
        """Return a service's health now.

        Args:
            name: The service's name.
            timeout: Seconds that the caller can wait; None for as long as the probe takes.

        Returns:
            The last result while it is fresh, otherwise that of the probe under way or of a new
            one. NOT_SERVING if the timeout comes first; the probe continues for other callers.
        """
        settled = self._settled(name)
        if settled is not None:
            return settled
        service = self._services[name]
        if service.health is not None and self._clock() < service.fresh_until:
            return service.health
        if service.probing is None or service.probing.done():
            service.probing = asyncio.create_task(self._probe(service))
        waiter = asyncio.get_running_loop().create_future()
        service.waiters.add(waiter)
        try:
            async with asyncio.timeout(timeout):
                health = await waiter
        except TimeoutError:
            health = DEADLINE
        finally:
            service.waiters.discard(waiter)
        # The drain may have begun since the result came.
        return DRAINING if self._draining else health

    async def check_all(self, *, timeout: float | None = None) -> dict[str, Health]:
        """Return the health of every service now, the gateway first.

        Args:
            timeout: Seconds that the caller can wait; None for as long as the probes take.
        """

        async def once() -> dict[str, Health]:
            checks = (self.check(name, timeout=timeout) for name in self.services)
            return dict(zip(self.services, await asyncio.gather(*checks), strict=True))

        healths = await once()
        # The drain may have begun after the first of them was known.
        return await once() if self._draining else healths

    async def watch(
        self, name: str, *, timeout: float | None = None
    ) -> AsyncGenerator[Health, None]:
        """Follow a service's health until `end_watches`.

        Args:
            name: The service's name; an unknown one stays unknown without ending the watch.
            timeout: Seconds that the caller can wait for the first value.

        Yields:
            The health now, then each change of status. A slow reader gets the latest status only.
        """
        last_sent: Status | None = None
        with self._watching(name) as changed:
            health = await self.check(name, timeout=timeout)
            while True:
                if health.status is not last_sent:
                    last_sent = health.status
                    yield health
                if self._watches_ended:
                    return
                # Cleared before the health is read, so that no change is missed.
                await changed.wait()
                changed.clear()
                health = self._settled(name) or self._services[name].health or health

    def drain(self) -> None:
        """Make every service but `liveness` NOT_SERVING, for waiting callers too."""
        self._draining = True
        for service in self._services.values():
            _answer(service, DRAINING)
            if service.health is not None:  # a service without a result has not changed
                self._record(service, DRAINING)

    def end_watches(self) -> None:
        """End every watch."""
        self._watches_ended = True
        _wake(self._settled_watchers)
        for service in self._services.values():
            _wake(service.watchers)

    async def close(self) -> None:
        """Drain, end the watches and cancel the probes under way."""
        self._closed = True
        self.drain()
        self.end_watches()
        tasks = [
            task
            for service in self._services.values()
            for task in (service.probing, service.looking)
            if task is not None
        ]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _settled(self, name: str) -> Health | None:
        """Return the health that no probe can change, None where a probe decides."""
        if name == LIVENESS:
            return ALIVE
        if name not in self._services:
            return UNKNOWN_SERVICE
        return DRAINING if self._draining else None

    @contextlib.contextmanager
    def _watching(self, name: str) -> Iterator[asyncio.Event]:
        """Register a watcher; a service is probed again and again while it has any."""
        changed = asyncio.Event()
        service = self._services.get(name)
        watchers = self._settled_watchers if service is None else service.watchers
        watchers.add(changed)
        if service is not None and (service.looking is None or service.looking.done()):
            service.looking = asyncio.create_task(self._look(service))
        try:
            yield changed
        finally:
            watchers.discard(changed)

    async def _look(self, service: _Service) -> None:
        """Probe a service again and again while it is watched."""
        while service.watchers and not self._draining:
            await asyncio.sleep(self._watch_interval)
            if service.watchers:
                await self.check(service.name)

    async def _probe(self, service: _Service) -> None:
        """Probe once, keep the result and answer the callers that wait for it."""
        started = self._clock()
        try:
            health = _health_of(await service.probe())
        except (Exception, asyncio.CancelledError):
            # Only close() cancels a probe. `Task.cancelling()` cannot be asked: in Python 3.11 and
            # 3.12 it stays 1 after a TaskGroup inside the probe has failed.
            if self._closed:
                raise
            _log.exception("probing failed", extra={"event": "internal_error"})
            health = INTERNAL_ERROR
        ended = self._clock()
        service.fresh_until = started + self._cache_ttl
        _answer(service, health)
        self._emit(ProbeCompleted(service=service.name, health=health, seconds=ended - started))
        if not self._draining:
            self._record(service, health)

    def _record(self, service: _Service, health: Health) -> None:
        """Keep a service's health, and report a change of its status or of the reason."""
        previous, now = service.health, self._clock()
        if health == previous:
            return
        is_new_status = previous is None or previous.status is not health.status
        held = now - (service.status_since if is_new_status else service.reason_since)
        service.health, service.reason_since = health, now
        if is_new_status:
            service.status_since = now
            _wake(service.watchers)
        self._emit(
            StatusChanged(
                service=service.name,
                previous=previous,
                health=health,
                held_seconds=0.0 if previous is None else held,
            )
        )


def _health_of(result: ProbeResult) -> Health:
    return Health(Status.SERVING if result.ready else Status.NOT_SERVING, result.reason)


def _answer(service: _Service, health: Health) -> None:
    for waiter in service.waiters:
        if not waiter.done():
            waiter.set_result(health)
    service.waiters.clear()


def _wake(watchers: set[asyncio.Event]) -> None:
    for changed in watchers:
        changed.set()

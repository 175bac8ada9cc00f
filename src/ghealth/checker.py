"""The one place that decides what a service's health is at this moment."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass

from ghealth import reasons
from ghealth.observer import Observer
from ghealth.probe import Probe, ProbeResult
from ghealth.status import (
    ALIVE,
    CALLER_LEFT_NO_TIME,
    DRAINING,
    INTERNAL_ERROR,
    LIVENESS,
    UNKNOWN_SERVICE,
    Health,
    Status,
)

_log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Target:
    """A service that is probed: the attempt under way and the last one's outcome."""

    probe: Probe
    attempt: asyncio.Task[Health] | None = None
    health: Health = INTERNAL_ERROR
    fresh_until: float = float("-inf")


class Checker:
    """Keeps the promise: never SERVING unless the target said so within the last moment.

    The callers of one moment share one attempt, its outcome serves everyone while it is fresh,
    and with nobody asking nothing happens. Make it inside a running event loop.

    Args:
        probes: How to ask each service's target. `liveness` needs none.
        probe_timeout: Seconds that one attempt may take in all.
        cache_ttl: Seconds for which an outcome, good or bad, serves every caller, counted from
            the start of its attempt; 0 makes each caller ask again unless an attempt is under way.
        watch_interval: Seconds between the looks of one watcher.
        observer: Told of each attempt's outcome; it must not raise.
        clock: Seconds on a clock that nobody can set back.
    """

    def __init__(
        self,
        probes: Mapping[str, Probe],
        *,
        probe_timeout: float,
        cache_ttl: float,
        watch_interval: float,
        observer: Observer,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._targets = {service: _Target(probe) for service, probe in probes.items()}
        self._probe_timeout = probe_timeout
        self._cache_ttl = cache_ttl
        self._watch_interval = watch_interval
        self._observer = observer
        self._clock = clock
        # Futures, not events: a state that is reached stays, so nobody can miss the wake-up.
        self._draining: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._watches_ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def services(self) -> tuple[str, ...]:
        """The names of all services, the gateway first."""
        return (*self._targets, LIVENESS)

    @property
    def draining(self) -> bool:
        """Whether every service but `liveness` is not serving, whatever its target says."""
        return self._draining.done()

    async def check(self, service: str, *, patience: float | None = None) -> Health:
        """Tell a service's health now.

        Args:
            service: Its name.
            patience: Seconds that the caller can wait; None for as long as the attempt takes.

        Returns:
            The outcome at hand while it is fresh, else that of the attempt under way or of a new
            one. It is NOT_SERVING if patience runs out first; the attempt goes on for the others.
        """
        settled = self._settled(service)
        if settled is not None:
            return settled
        target = self._targets[service]
        if self._clock() < target.fresh_until:
            return target.health
        if target.attempt is None or target.attempt.done():
            target.attempt = asyncio.create_task(self._attempt(service, target))
        attempt = target.attempt
        # wait() leaves the attempt alone when this caller goes away or runs out of patience.
        await asyncio.wait(
            (attempt, self._draining), timeout=patience, return_when=asyncio.FIRST_COMPLETED
        )
        if self._draining.done():
            return DRAINING
        if not attempt.done():
            return CALLER_LEFT_NO_TIME
        return INTERNAL_ERROR if attempt.cancelled() else attempt.result()

    async def watch(
        self, service: str, *, patience: float | None = None
    ) -> AsyncGenerator[Health, None]:
        """Follow a service's health until `end_watches`.

        Args:
            service: Its name; one that is unknown stays so without ending the watch.
            patience: Seconds that the caller can wait for the first value.

        Yields:
            The health now, then each change of status.
        """
        told: Status | None = None
        while True:
            settled = self._settled(service)  # before the look: it decides what to sleep on
            health = settled or await self.check(service, patience=patience)
            patience = None
            if health.status is not told:
                told = health.status
                yield health
            if self._watches_ended.done():
                return
            if settled is None:
                await asyncio.wait((self._draining,), timeout=self._watch_interval)
            else:
                await asyncio.wait((self._watches_ended,))

    def drain(self) -> None:
        """From now on every service but `liveness` is NOT_SERVING, for callers waiting now too."""
        if not self._draining.done():
            self._draining.set_result(None)

    def end_watches(self) -> None:
        """Let every watch come to its end."""
        if not self._watches_ended.done():
            self._watches_ended.set_result(None)

    async def close(self) -> None:
        """Drain, end the watches and cancel what is under way."""
        self.drain()
        self.end_watches()
        attempts = [target.attempt for target in self._targets.values() if target.attempt]
        for attempt in attempts:
            attempt.cancel()
        await asyncio.gather(*attempts, return_exceptions=True)

    def _settled(self, service: str) -> Health | None:
        """Tell the health of a service that no attempt can change, None for any other."""
        if service == LIVENESS:
            return ALIVE
        if service not in self._targets:
            return UNKNOWN_SERVICE
        return DRAINING if self._draining.done() else None

    async def _attempt(self, service: str, target: _Target) -> Health:
        """Make one attempt and keep its outcome."""
        started = self._clock()
        late = ProbeResult(ready=False, reason=reasons.no_answer_within(self._probe_timeout))
        try:
            async with asyncio.timeout(self._probe_timeout):
                result = await target.probe()
        except TimeoutError:
            result = late
        except Exception:
            _log.exception("probing failed", extra={"event": "internal_error"})
            result = ProbeResult(ready=False, reason=reasons.INTERNAL_ERROR)
        seconds = self._clock() - started
        if seconds > self._probe_timeout:
            # After a SIGSTOP the answer of long ago and the expired timer come in one turn of
            # the loop, and the answer may come first.
            result = late
        status = Status.SERVING if result.ready else Status.NOT_SERVING
        target.health = Health(status, result.reason)
        target.fresh_until = started + self._cache_ttl
        self._observer.probed(service, target.health, seconds)
        return target.health

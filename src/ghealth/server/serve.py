"""Creates the parts of ghealth, serves, and shuts down in the right order."""

import asyncio
import codecs
import functools
import logging
import os
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import grpc

from ghealth import __version__, process
from ghealth.address import Address
from ghealth.admin import Admin
from ghealth.checker import Checker
from ghealth.events import DrainStarted, fan_out, log_event
from ghealth.health import ALB_USER_AGENT, DRAINING, POLICIES, Code
from ghealth.observe.log import Log
from ghealth.probe import Probe
from ghealth.server import reflection
from ghealth.server.guard import Guard
from ghealth.server.limits import OPTIONS, memory_limit
from ghealth.server.listen import admin_sockets, listen
from ghealth.server.prepare import Prepared, prepare
from ghealth.server.servicer import AllPaths, HealthServicer
from ghealth.settings import Mistakes, Settings

_log = logging.getLogger(__name__)
_GRPC_LOG: Final = "grpc._cython.cygrpc"
_CALLERS_LOGS: Final = (logging.getLogger(_GRPC_LOG), logging.getLogger("asyncio"))
"""Where grpc.aio logs that a caller has disconnected, or sent a header that is not UTF-8. asyncio
logs the exceptions of its tasks."""

LOAD_BALANCER_TIMEOUT: Final = 5.0
"""Seconds that an ALB waits for an answer by default (ELBv2 API reference,
`HealthCheckTimeoutSeconds`)."""

GRPC_NICENESS: Final = 10
"""How much lower the priority of gRPC's threads is than the event loop's (nice(1))."""

STOP_MARGIN: Final = 0.25
"""Seconds within which connections can close by themselves, after the last call or the grace."""

STOP_INTERVAL: Final = 0.1
"""Seconds between two attempts to stop."""

STOP_ATTEMPTS: Final = 50
"""How many times the remaining connections are cut before ghealth stops waiting for gRPC."""


@dataclass(frozen=True, slots=True)
class Ports:
    """The ports of a server.

    Args:
        listen: The ports of `LISTEN`, in the same order.
        tls_listen: The ports of `TLS_LISTEN`, in the same order.
        admin: The port of `ADMIN_LISTEN`; None without an admin port.
    """

    listen: tuple[int, ...]
    tls_listen: tuple[int, ...]
    admin: int | None


async def serve(
    settings: Settings,
    *,
    shutdown_trigger: Callable[[], Awaitable[bool]],
    probes: Mapping[str, Probe] | None = None,
    on_started: Callable[[Ports], None] = lambda _ports: None,
) -> None:
    """Serve until the trigger returns, then drain and stop.

    It changes no signal handlers and does not use the event loop's executor.

    Args:
        settings: The addresses, services, timeouts and limits.
        shutdown_trigger: Awaited once. It returns when the server must stop: True to drain for
            `DRAIN_DELAY` first, False to stop without this delay.
        probes: Custom probes by service name. They replace the probes from the settings.
        on_started: Called once, when the server accepts calls.

    Raises:
        ValueError: A probe or a certificate cannot be used; the message has a line for each.
        ListenError: An address is in use or does not belong to this machine. Everything that was
            opened is closed.
        Exception: The error that ended gRPC's server, which is a bug. A process that stays and
            accepts no calls would be worse than one that is started again.
    """
    prepared = prepare(settings, probes or {})
    if isinstance(prepared, Mistakes):
        raise ValueError("\n".join(prepared.lines))  # noqa: TRY004 - about values, not types
    await serve_prepared(prepared, shutdown_trigger=shutdown_trigger, on_started=on_started)


async def serve_prepared(
    prepared: Prepared,
    *,
    shutdown_trigger: Callable[[], Awaitable[bool]],
    on_started: Callable[[Ports], None] = lambda _ports: None,
) -> None:
    """Serve as `serve` does.

    Args:
        prepared: The settings, probes and certificate.
        shutdown_trigger: As for `serve`.
        on_started: As for `serve`.
    """
    trigger = asyncio.ensure_future(shutdown_trigger())
    try:
        async with AsyncExitStack() as stack:
            await _serve(prepared, trigger, on_started, stack)
        log_event(_log, logging.INFO, "stopped", "stopped")
    finally:
        trigger.cancel()


async def _serve(
    prepared: Prepared,
    trigger: "asyncio.Future[bool]",
    on_started: Callable[[Ports], None],
    stack: AsyncExitStack,
) -> None:
    settings = prepared.settings
    services = tuple(prepared.urls)
    admin = Admin(settings.rows(), prepared.urls, probe_timeout=settings.probe_timeout)
    log = Log(services)
    stack.callback(log.close)
    emit = fan_out((log, *admin.sinks))
    guard = Guard(
        max_watches=settings.max_watches,
        descriptors=process.descriptor_limit(),
        limit=memory_limit(),
        emit=emit,
    )
    stack.callback(guard.close)
    checker = Checker(
        prepared.probes,
        cache_ttl=settings.cache_ttl,
        watch_interval=settings.watch_interval,
        emit=emit,
    )
    stack.push_async_callback(checker.close)
    policy = functools.partial(POLICIES[settings.answer], status_callers=settings.status_callers)
    servicer = HealthServicer(
        checker, policy=policy, max_watches=settings.max_watches, guard=guard, emit=emit
    )
    for logger in _CALLERS_LOGS:
        logger.addFilter(_is_worth_a_line)
        stack.callback(logger.removeFilter, _is_worth_a_line)
    stack.enter_context(_paths_that_are_not_utf_8())
    threads = _threads()
    server = grpc.aio.server(options=OPTIONS)
    # Before anything is awaited: meanwhile other tasks of a program could start threads.
    _lower_priority(_threads() - threads)
    if settings.reflection:
        server.add_generic_rpc_handlers(reflection.handlers(servicer.guarded))
    server.add_generic_rpc_handlers((AllPaths(servicer),))

    sockets = admin_sockets(settings)
    await stack.enter_async_context(admin.serving(sockets, checker, lambda: servicer.watches))
    # gRPC waits for open streams until the grace is over, so they must end before the stop.
    stack.push_async_callback(_stop, server, servicer, guard, settings.shutdown_grace)
    stack.callback(servicer.end_streams)
    ports = Ports(
        listen=tuple(listen(server, address) for address in settings.listen),
        tls_listen=tuple(
            listen(server, address, prepared.certificate) for address in settings.tls_listen
        ),
        admin=sockets[0].getsockname()[1] if sockets else None,
    )
    guard.serve((*ports.listen, *ports.tls_listen))
    await server.start()
    guard.start()
    _log_start(prepared, ports)
    on_started(ports)

    # Never cancelled: that would cancel gRPC's future, and its own stop would fail.
    ended = asyncio.ensure_future(server.wait_for_termination())
    await asyncio.wait((trigger, ended), return_when=asyncio.FIRST_COMPLETED)
    if not trigger.done():
        await ended  # raises the error that ended gRPC's server
    delay = settings.drain_delay if await trigger else 0.0
    checker.drain()
    emit(DrainStarted(seconds=delay))
    log_event(_log, logging.INFO, "draining", f"draining for {delay:g} s", seconds=delay)
    await asyncio.sleep(delay)
    log_event(_log, logging.INFO, "stopping", "ending open calls")


async def _stop(
    server: grpc.aio.Server, servicer: HealthServicer, guard: Guard, grace: float
) -> None:
    """Stop the server, and cut the connections that would keep it from stopping.

    gRPC closes a connection only when it has nothing to send. That never happens while a client
    reads nothing, or floods it with frames that need an answer.
    """
    stopping = asyncio.create_task(server.stop(grace))
    end = asyncio.get_running_loop().time() + grace
    while servicer.answering and asyncio.get_running_loop().time() < end and not stopping.done():
        await asyncio.wait((stopping,), timeout=STOP_INTERVAL)
    for wait in (STOP_MARGIN, *[STOP_INTERVAL] * STOP_ATTEMPTS):
        await asyncio.wait((stopping,), timeout=wait)
        if stopping.done():
            return
        guard.cut_all()
    stopping.cancel()


@contextmanager
def _paths_that_are_not_utf_8() -> Iterator[None]:
    """Accept calls whose path is not UTF-8, within a `with` block: they are paths not served.

    grpc.aio decodes the path in the task that accepts calls, and an error there shuts the server
    down for good (1.85, `_server_main_loop`). One request would be enough. Only Python's handler of
    decoding errors comes before it; for every other task, it does what it did.
    """
    raising = codecs.lookup_error("strict")

    def handle(error: UnicodeError) -> tuple[str | bytes, int]:
        if isinstance(error, UnicodeDecodeError) and _accepts_calls():
            return "\N{REPLACEMENT CHARACTER}", error.end
        return raising(error)

    codecs.register_error("strict", handle)
    try:
        yield
    finally:
        codecs.register_error("strict", raising)


def _accepts_calls() -> bool:
    try:
        task = asyncio.current_task()
    except RuntimeError:  # a thread without an event loop
        return False
    name = getattr(task and task.get_coro(), "__name__", "")
    return name == "_server_main_loop"


def _threads() -> set[int]:
    return {int(task.name) for task in Path("/proc/self/task").glob("*")}


def _lower_priority(threads: Iterable[int]) -> None:
    """Run threads after the event loop, where there are too few processors for both.

    gRPC's threads can use every processor in a flood. Its calls then fill the queue until Python
    accepts them, and the guard cuts too late.

    Args:
        threads: gRPC's threads. Those that they start have the same priority.
    """
    for thread in threads:
        with suppress(OSError):  # it has just ended
            os.setpriority(
                os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, 0) + GRPC_NICENESS
            )


def _is_worth_a_line(record: logging.LogRecord) -> bool:
    """Return False for what grpc.aio logs, with a stack, about what a caller did."""
    error = record.exc_info[1] if record.exc_info else None
    is_header = isinstance(error, UnicodeDecodeError) and record.name == _GRPC_LOG
    return not (is_header or isinstance(error, grpc.aio.InternalError))


def _log_start(prepared: Prepared, ports: Ports) -> None:
    """Log the addresses, the URLs that are probed, and the settings that are not the default.

    Log a warning if an ALB would count a gateway that is not ready as healthy, and if a probe may
    take longer than a load balancer waits.
    """
    settings = prepared.settings
    places = {
        "listen": _with_ports(settings.listen, ports.listen),
        "tls_listen": _with_ports(settings.tls_listen, ports.tls_listen),
    }
    if ports.admin is not None:
        places["admin_listen"] = _with_ports(settings.admin_listen, (ports.admin,))
    changed = {row.variable: row.value for row in settings.rows() if row.changed}
    probed = [url for urls in prepared.urls.values() for url in urls]
    parts = [
        f"ghealth {__version__} serves gRPC on {', '.join(places['listen']) or 'no plain port'}",
        *(f"with TLS on {place}" for place in places["tls_listen"]),
        *((f"probes {', '.join(probed)}",) if probed else ()),
        *(f"status page http://{place}/" for place in places.get("admin_listen", ())),
        *(f"{name}={value}" for name, value in changed.items()),
    ]
    log_event(
        _log,
        logging.INFO,
        "started",
        "; ".join(parts),
        version=__version__,
        **{name: found for name, found in places.items() if found},
        probes=probed,
        settings=changed,
    )
    answer = POLICIES[settings.answer](DRAINING, ALB_USER_AGENT, settings.status_callers)
    if answer.code is Code.OK:
        log_event(
            _log,
            logging.WARNING,
            "alb_answer_unsafe",
            "an ALB gets OK from a gateway that is not ready, and counts it as healthy: "
            "GHEALTH_ANSWER or GHEALTH_STATUS_CALLERS sends it the status in the message",
        )

    if settings.probe_timeout > LOAD_BALANCER_TIMEOUT:
        log_event(
            _log,
            logging.WARNING,
            "probe_timeout_long",
            f"a probe may take {settings.probe_timeout:g} s (GHEALTH_PROBE_TIMEOUT), longer than a "
            f"load balancer waits by default, {LOAD_BALANCER_TIMEOUT:g} s",
        )


def _with_ports(addresses: Sequence[Address], ports: Sequence[int]) -> list[str]:
    return [str(replace(a, port=port)) for a, port in zip(addresses, ports, strict=True)]

"""The one place that joins the parts, and takes them apart in the right order."""

import asyncio
import errno
import functools
import itertools
import logging
import resource
import socket
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, suppress
from typing import TYPE_CHECKING, Final

import grpc

from ghealth import reflection, servicer
from ghealth.address import ANY_IPV4, ANY_IPV6, Address
from ghealth.answers import POLICIES
from ghealth.checker import Checker
from ghealth.logs import AnswerLog, StatusLog, log_event
from ghealth.observer import Observers
from ghealth.probe import HttpProbe, trust
from ghealth.settings import Settings
from ghealth.status import GATEWAY, LIVENESS

if TYPE_CHECKING:
    from ghealth.operators import Operators

_log = logging.getLogger(__name__)

LOOK_UPS: Final = 32
"""Look-ups of names that may hang at a time for each target: a resolver gives up after 30 s at
most, and a target whose name hangs must not take the threads of the others."""

STREAMS_BESIDE_WATCHES: Final = 100
"""Calls that one connection may have open beside all the watches there may be."""


def options(max_watches: int) -> list[tuple[str, int]]:
    """Choose gRPC's limits: what a stranger may make this process hold, and for how long.

    Health checks are not authenticated, so everyone who reaches the port is a stranger. gRPC has
    no limit on the number of calls of all connections that would spare watchers (its
    `maximum_concurrent_rpcs` counts them, and would refuse Checks), nor on connections: that is
    the limit of descriptors, which these times keep free.

    Args:
        max_watches: Most watches open at once.
    """
    return [
        # Two servers that share a port split the answers; a taken port must be a mistake.
        ("grpc.so_reuseport", 0),
        # Who connects and says nothing is let go after this time (gRPC's default: 120 s).
        ("grpc.server_handshake_timeout_ms", 2_000),
        # Who says nothing more, too: longer than any checker's interval (an ALB's: at most 300 s),
        # so that Envoy keeps its one connection. A watch is a call, and keeps its connection.
        ("grpc.max_connection_idle_ms", 600_000),
        # A dead watcher is found after time + timeout instead of more than two hours.
        ("grpc.keepalive_time_ms", 45_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
        # Clients may ping every 10 s, with or without calls; then they are told to calm down. This
        # name works, `grpc.http2.min_recv_ping_interval_without_data_ms` is silently ignored.
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        ("grpc.http2.max_ping_strikes", 2),
        # A request is the name of a service: this is plenty (gRPC's default: 4 MiB).
        ("grpc.max_receive_message_length", 16 * 1024),
        # Headers are an ALB's 200 bytes or a tracing proxy's few KiB (soft limit, hard limit).
        ("grpc.max_metadata_size", 8 * 1024),
        ("grpc.absolute_max_metadata_size", 16 * 1024),
        # From 1,000 unread calls on, gRPC would answer some of them, anybody's, with CANCELLED, and
        # from 3,000 on all: a storm of resets must not reach others, and CANCELLED ends Traefik's
        # checking for good. Bounded all the same: each holds a few KiB.
        ("grpc.server.max_pending_requests", 10_000),
        ("grpc.server.max_pending_requests_hard_limit", 10_000),
        # So that one connection full of watches still has room for a Check.
        ("grpc.max_concurrent_streams", max_watches + STREAMS_BESIDE_WATCHES),
    ]


_NO_IPV6: Final = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)


class ListenError(Exception):
    """An address of `LISTEN` is not to be had; the text says which and why, in one line."""


async def serve(
    settings: Settings,
    *,
    shutdown_trigger: Callable[[], Awaitable[bool]],
    on_started: Callable[[Sequence[int]], None] = lambda _ports: None,
) -> None:
    """Serve until the trigger returns, then drain and stop.

    Args:
        settings: Checked settings.
        shutdown_trigger: Awaited once; it returns when it is time to stop, with whether callers
            get `DRAIN_DELAY` seconds to notice.
        on_started: Told the ports of `LISTEN` once they answer, in their order, and after them
            that of `METRICS_LISTEN`, if there is one.

    Raises:
        ListenError: If an address is taken or not this machine's. Nothing is left open.
    """
    _raise_descriptor_limit()
    targets = {GATEWAY: settings.target, **settings.services}
    asyncio.get_running_loop().set_default_executor(
        ThreadPoolExecutor(LOOK_UPS * len(targets), thread_name_prefix="look-up")
    )
    services = (*targets, LIVENESS)
    operators = _operators(settings, services)
    observer = Observers(
        (StatusLog(), AnswerLog(services), *(operators.observers if operators else ()))
    )
    async with AsyncExitStack() as stack:
        tls = trust(tuple(targets.values()))
        checker = Checker(
            {
                service: HttpProbe(
                    target,
                    success_codes=settings.probe_success_codes,
                    headers=settings.probe_headers,
                    tls=tls,
                )
                for service, target in targets.items()
            },
            probe_timeout=settings.probe_timeout,
            cache_ttl=settings.cache_ttl,
            watch_interval=settings.watch_interval,
            observer=observer,
        )
        stack.push_async_callback(checker.close)

        server = grpc.aio.server(options=options(settings.max_watches))
        health = servicer.HealthServicer(
            checker,
            answer=functools.partial(
                POLICIES[settings.answer], status_callers=settings.status_callers
            ),
            max_watches=settings.max_watches,
            observer=observer,
        )
        server.add_generic_rpc_handlers(health.handlers())
        sockets = _bound(settings.metrics_listen) if settings.metrics_listen else []
        if operators:
            await stack.enter_async_context(
                operators.serving(sockets, checker, lambda: health.watchers)
            )
        if settings.reflection:
            server.add_generic_rpc_handlers(reflection.handlers(servicer.descriptions()))
        # Stopping waits out the grace for an open Watch, so watches end before it.
        stack.push_async_callback(server.stop, settings.shutdown_grace)
        stack.callback(checker.end_watches)

        ports = [_listen(server, address) for address in settings.listen]
        await server.start()
        listening = [
            str(Address(address.host, port))
            for address, port in zip(settings.listen, ports, strict=True)
        ]
        told = {"listen": listening}
        if settings.metrics_listen:
            ports.append(sockets[0].getsockname()[1])
            told["metrics_listen"] = [str(Address(settings.metrics_listen.host, ports[-1]))]
        changed = settings.changed()
        log_event(
            _log,
            logging.INFO,
            "started",
            "; ".join(
                (
                    f"listening on {', '.join(itertools.chain(*told.values()))}",
                    *(f"{name}={value}" for name, value in changed.items()),
                )
            ),
            **told,
            settings=changed,
        )
        on_started(ports)

        drains = await shutdown_trigger()
        delay = settings.drain_delay if drains else 0.0
        checker.drain()
        observer.draining()
        log_event(_log, logging.INFO, "draining", f"draining for {delay:g} s", seconds=delay)
        await asyncio.sleep(delay)
        log_event(_log, logging.INFO, "stopping", "ending open calls")
    log_event(_log, logging.INFO, "stopped", "stopped")


def _listen(server: grpc.aio.Server, address: Address) -> int:
    """Have gRPC listen on an address, and tell the port."""
    if address.port:
        _try_to_bind(address)
    try:
        return server.add_insecure_port(str(address))
    except RuntimeError:
        raise ListenError(f"cannot listen on {address}") from None


def _try_to_bind(address: Address) -> None:
    """Find out whether an address is to be had, and why not.

    gRPC does not say why, and settles for less: for a name that has two addresses, one of them
    taken, it listens on the other.
    """
    for trial in _bound(address):
        trial.close()


def _bound(address: Address) -> list[socket.socket]:
    """Bind an address: a socket for each that a name stands for."""
    sockets = []
    port = address.port
    try:
        found = socket.getaddrinfo(
            address.host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        for family, kind, protocol, _, place in found:
            bound = socket.socket(family, kind, protocol)
            sockets.append(bound)
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                both = address.host == ANY_IPV6
                bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not both)
            bound.bind((place[0], port, *place[2:]))
            port = bound.getsockname()[1]  # a free one is the same for all
    except OSError as error:
        for bound in sockets:
            bound.close()
        if address.host == ANY_IPV6 and error.errno in _NO_IPV6:
            # gRPC does the same on a node without IPv6.
            return _bound(Address(ANY_IPV4, address.port))
        raise ListenError(f"cannot listen on {address}: {error.strerror}") from None
    return sockets


def _operators(settings: Settings, services: Sequence[str]) -> "Operators | None":
    """Make what tells operators why, if they want to know; else nothing of it is imported."""
    if settings.metrics_listen is None:
        return None
    from ghealth.operators import Operators  # noqa: PLC0415

    return Operators(services, probe_timeout=settings.probe_timeout, settings=settings.rows)


def _raise_descriptor_limit() -> None:
    """Use all the descriptors that this process may have: hostile connections take them away."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # Where the hard limit is infinite (macOS), the kernel knows a lower one of its own.
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

"""Creates the parts of ghealth, serves, and shuts down in the right order."""

import asyncio
import errno
import functools
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import grpc

from ghealth import __version__, names, process
from ghealth.address import ANY_IPV4, ANY_IPV6, Address
from ghealth.admin import Admin
from ghealth.checker import Checker
from ghealth.events import DrainStarted, fan_out, log_event
from ghealth.health import ALB_USER_AGENT, DRAINING, GATEWAY, LIVENESS, POLICIES, Code
from ghealth.names import AddressInfo
from ghealth.observe.log import AnswerLog, CutLog, PathLog, StatusLog
from ghealth.probe import PROBES, AllOf, Probe, WithTimeout
from ghealth.server import reflection
from ghealth.server.guard import Guard
from ghealth.server.limits import OPTIONS
from ghealth.server.servicer import AllPaths, HealthServicer
from ghealth.server.tls import CertificateError, ServerCertificate, trust_store
from ghealth.settings import Settings, Target, show_url

_log = logging.getLogger(__name__)
_HANG_UP_LOGS: Final = (logging.getLogger("grpc._cython.cygrpc"), logging.getLogger("asyncio"))
"""Where grpc.aio logs that a caller has disconnected; asyncio logs the exceptions of its tasks."""

GRPC_NICENESS: Final = 10
"""How much lower the priority of gRPC's threads is than the event loop's (nice(1))."""

STOP_MARGIN: Final = 0.25
"""Seconds within which connections can close by themselves, after the last call or the grace."""

STOP_INTERVAL: Final = 0.1
"""Seconds between two attempts to stop."""

STOP_ATTEMPTS: Final = 50
"""How many times the remaining connections are cut before ghealth stops waiting for gRPC."""

_NO_IPV6: Final = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)


class ListenError(Exception):
    """ghealth cannot listen; the message has the address or the certificate, and the cause."""


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
        ListenError: An address is in use, does not resolve or does not belong to this machine, or
            the certificate cannot be loaded. Everything that was opened is closed.
    """
    trigger = asyncio.ensure_future(shutdown_trigger())
    looking_up = asyncio.ensure_future(_look_up_all(settings))
    try:
        # The server must be able to stop although a name server does not answer.
        await asyncio.wait((looking_up, trigger), return_when=asyncio.FIRST_COMPLETED)
        if looking_up.done():
            async with AsyncExitStack() as stack:
                await _serve(
                    settings, trigger, looking_up.result(), probes or {}, on_started, stack
                )
        else:
            trigger.result()
        log_event(_log, logging.INFO, "stopped", "stopped")
    finally:
        trigger.cancel()
        looking_up.cancel()


async def _serve(
    settings: Settings,
    trigger: "asyncio.Future[bool]",
    places: Mapping[Address, Sequence[AddressInfo]],
    own_probes: Mapping[str, Probe],
    on_started: Callable[[Ports], None],
    stack: AsyncExitStack,
) -> None:
    targets = {
        name: several for name, several in _targets(settings).items() if name not in own_probes
    }
    probes = _probes(settings, targets) | {
        name: WithTimeout(probe, settings.probe_timeout) for name, probe in own_probes.items()
    }
    probes = {GATEWAY: probes[GATEWAY]} | probes
    services = (*probes, LIVENESS)
    admin = Admin(
        settings.rows(),
        {name: tuple(show_url(found.url) for found in targets.get(name, ())) for name in services},
        probe_timeout=settings.probe_timeout,
    )
    emit = fan_out((StatusLog(), AnswerLog(services), PathLog(), CutLog(), *admin.sinks))
    guard = Guard(
        max_watches=settings.max_watches, descriptors=process.descriptor_limit(), emit=emit
    )
    stack.callback(guard.close)
    checker = Checker(
        probes, cache_ttl=settings.cache_ttl, watch_interval=settings.watch_interval, emit=emit
    )
    stack.push_async_callback(checker.close)
    policy = functools.partial(POLICIES[settings.answer], status_callers=settings.status_callers)
    servicer = HealthServicer(
        checker, policy=policy, max_watches=settings.max_watches, guard=guard, emit=emit
    )
    for logger in _HANG_UP_LOGS:
        logger.addFilter(_is_worth_a_line)
    threads = _threads()
    server = grpc.aio.server(options=OPTIONS)
    if settings.reflection:
        server.add_generic_rpc_handlers(reflection.handlers(servicer.guarded))
    server.add_generic_rpc_handlers((AllPaths(servicer),))

    sockets = _admin_sockets(settings, places)
    await stack.enter_async_context(admin.serving(sockets, checker, lambda: servicer.watches))
    # gRPC waits for open streams until the grace is over, so they must end before the stop.
    stack.push_async_callback(_stop, server, servicer, guard, settings.shutdown_grace)
    stack.callback(servicer.end_streams)
    certificate = _certificate(settings)
    ports = Ports(
        listen=tuple(_listen(server, address, places[address]) for address in settings.listen),
        tls_listen=tuple(
            _listen(server, address, places[address], certificate)
            for address in settings.tls_listen
        ),
        admin=sockets[0].getsockname()[1] if sockets else None,
    )
    guard.serve((*ports.listen, *ports.tls_listen))
    await server.start()
    _lower_priority(_threads() - threads)
    guarding = asyncio.create_task(guard.run())
    stack.callback(guarding.cancel)
    _log_start(settings, ports, targets)
    on_started(ports)

    drains = await trigger
    delay = settings.drain_delay if drains else 0.0
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


def _threads() -> set[int]:
    return {int(task.name) for task in Path("/proc/self/task").iterdir()}


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
    """Return False for what grpc.aio logs, with a stack, when a caller disconnects in a call."""
    return not (record.exc_info and isinstance(record.exc_info[1], grpc.aio.InternalError))


def _targets(settings: Settings) -> dict[str, tuple[Target, ...]]:
    """Return the targets of each service."""
    gateway = tuple(Target(url, settings.probe_headers) for url in settings.probe_url)
    return {GATEWAY: gateway} | {name: (target,) for name, target in settings.services.items()}


def _probes(settings: Settings, targets: Mapping[str, Sequence[Target]]) -> dict[str, Probe]:
    """Create the probe of each service."""
    trust = trust_store() if settings.has_https else None

    def probe_of(target: Target) -> Probe:
        probe = PROBES[target.url.scheme](
            target.url,
            success_codes=settings.probe_success_codes,
            headers=target.headers,
            trust=trust,
        )
        return WithTimeout(probe, settings.probe_timeout)

    return {
        name: AllOf(list(map(probe_of, several))) if len(several) > 1 else probe_of(several[0])
        for name, several in targets.items()
    }


def _log_start(settings: Settings, ports: Ports, targets: Mapping[str, Sequence[Target]]) -> None:
    """Log the addresses, the URLs that are probed, and the settings that are not the default.

    Log a warning if an ALB would count a gateway that is not ready as healthy.
    """
    places = {
        "listen": _with_ports(settings.listen, ports.listen),
        "tls_listen": _with_ports(settings.tls_listen, ports.tls_listen),
    }
    if settings.admin_listen is not None and ports.admin is not None:
        places["admin_listen"] = _with_ports((settings.admin_listen,), (ports.admin,))
    changed = {row.variable: row.value for row in settings.rows() if row.changed}
    probed = [show_url(target.url) for several in targets.values() for target in several]
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


def _certificate(settings: Settings) -> ServerCertificate | None:
    try:
        return None if settings.tls_files is None else ServerCertificate(settings.tls_files)
    except CertificateError as error:  # the files have changed since the settings were read
        raise ListenError(f"cannot serve with TLS: {error}") from None


def _with_ports(addresses: Sequence[Address], ports: Sequence[int]) -> list[str]:
    return [str(replace(a, port=port)) for a, port in zip(addresses, ports, strict=True)]


async def _look_up_all(settings: Settings) -> dict[Address, Sequence[AddressInfo]]:
    """Look up the names of all addresses concurrently."""
    addresses = [*settings.listen, *settings.tls_listen]
    if settings.admin_listen is not None:
        addresses.append(settings.admin_listen)
    found = await asyncio.gather(*map(_look_up, addresses))
    return dict(zip(addresses, found, strict=True))


async def _look_up(address: Address) -> Sequence[AddressInfo]:
    try:
        return await names.look_up(address.host, address.port, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise ListenError(f"cannot listen on {address}: {error.strerror}") from None


def _listen(
    server: grpc.aio.Server,
    address: Address,
    places: Sequence[AddressInfo],
    certificate: ServerCertificate | None = None,
) -> int:
    """Make gRPC listen on an address, and return the port.

    The address is bound without gRPC first, because gRPC does not report why it cannot listen. And
    if a name has two addresses and one is in use, gRPC would listen on the other one only.
    """
    bound = _bound(address, places)
    literals = [_literal(trial) for trial in bound]
    for trial in bound:
        trial.close()
    for literal in literals:
        try:
            if certificate is None:
                server.add_insecure_port(str(literal))
            else:
                server.add_secure_port(str(literal), certificate.credentials())
        except RuntimeError:
            raise ListenError(f"cannot listen on {address}") from None
    return literals[0].port


def _literal(bound: socket.socket) -> Address:
    """Return the address of a socket, with an IP address as its host."""
    host, port, *flow_and_scope = bound.getsockname()
    scope = flow_and_scope[1] if flow_and_scope else 0
    return Address(f"{host}%{scope}" if scope else host, port)


def _admin_sockets(
    settings: Settings, places: Mapping[Address, Sequence[AddressInfo]]
) -> list[socket.socket]:
    """Bind the admin port.

    If the default one cannot be bound, log a warning and return no sockets: ghealth works without
    it.
    """
    address = settings.admin_listen
    if address is None:
        return []
    is_default = "admin_listen" not in settings.model_fields_set
    if is_default and address.port in {used.port for used in settings.listen + settings.tls_listen}:
        problem = f"{address} has the port of another address"
    else:
        try:
            return _bound(address, places[address])
        except ListenError as error:
            if not is_default:
                raise
            problem = str(error)
    log_event(
        _log, logging.WARNING, "admin_unavailable", f"no status page and no metrics: {problem}"
    )
    return []


def _bound(address: Address, places: Sequence[AddressInfo]) -> list[socket.socket]:
    """Bind an address, and return a socket for each IP address of its host."""
    sockets = []
    port = address.port
    try:
        for family, kind, protocol, _, place in places:
            bound = socket.socket(family, kind, protocol)
            sockets.append(bound)
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                is_any = address.host == ANY_IPV6
                bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not is_any)
            bound.bind((place[0], port, *place[2:]))
            port = bound.getsockname()[1]  # with port 0, all sockets use the port of the first
    except OSError as error:
        for bound in sockets:
            bound.close()
        # On a node without IPv6, [::] means 0.0.0.0, as in gRPC, and localhost can still have the
        # address ::1 in /etc/hosts.
        ipv4 = [place for place in places if place[0] == socket.AF_INET]
        if address.host == ANY_IPV6:
            ipv4 = [(socket.AF_INET, socket.SOCK_STREAM, 0, "", (ANY_IPV4, address.port))]
        if error.errno in _NO_IPV6 and ipv4 and ipv4 != places:
            return _bound(address, ipv4)
        raise ListenError(f"cannot listen on {address}: {error.strerror}") from None
    return sockets

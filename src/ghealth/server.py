"""Joins the parts, and takes them apart in the right order."""

import asyncio
import errno
import functools
import logging
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from typing import Final

import grpc

from ghealth import __version__, names, reflection
from ghealth.address import ANY_IPV4, ANY_IPV6, Address
from ghealth.admin import Admin
from ghealth.checker import Checker
from ghealth.events import DrainStarted, fan_out
from ghealth.guard import Guard
from ghealth.health import DRAINING, GATEWAY, LIVENESS
from ghealth.logs import AnswerLog, CutLog, PathLog, StatusLog, log_event
from ghealth.names import AddressInfo
from ghealth.policies import POLICIES, Code
from ghealth.probe import PROBES, AllOf, Probe, WithTimeout
from ghealth.servicer import MAX_WATCHES_PER_CONNECTION, AllPaths, HealthServicer
from ghealth.settings import Settings, Target, show_url
from ghealth.tls import CertificateError, ServerCertificate, trust_store

_log = logging.getLogger(__name__)
_GRPC_LOG: Final = logging.getLogger("grpc._cython.cygrpc")

RESERVED_STREAMS: Final = 8
"""Calls that one connection may have open beside its watches."""

STOP_MARGIN: Final = 0.25
"""Seconds after the last call in which connections close by themselves."""

STOP_INTERVAL: Final = 0.1
STOP_ATTEMPTS: Final = 50
"""How often the connections that are left are cut before the server is given up."""

MAX_HEADERS: Final = 4 * 1024
"""Bytes of headers in a request."""

MAX_PENDING: Final = 1500
"""Calls that wait until Python accepts them."""

READ_BUFFER: Final = 32 * 1024
"""Bytes that a connection may have sent and that are not processed yet."""

OPTIONS: Final = (
    # Two servers that share a port split the calls; a port that is taken must be a mistake.
    ("grpc.so_reuseport", 0),
    # A connection that sends nothing is closed after this time (gRPC's default: 120 s).
    ("grpc.server_handshake_timeout_ms", 2_000),
    # An idle one too: longer than any checker's interval (an ALB's: at most 300 s), so that Envoy
    # keeps its one connection. A Watch is a call, and keeps its connection.
    ("grpc.max_connection_idle_ms", 600_000),
    # A dead watcher is found after time + timeout instead of more than two hours.
    ("grpc.keepalive_time_ms", 45_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    # Clients may ping this often. Well below the 10 s that grpc-go's clients use: their pings come
    # with jitter. `grpc.http2.min_recv_ping_interval_without_data_ms` would be ignored silently.
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.max_ping_strikes", 2),
    # A request is a service's name: this is plenty (gRPC's default: 4 MiB).
    ("grpc.max_receive_message_length", 16 * 1024),
    # Headers are an ALB's 200 bytes or a tracing proxy's 1 or 2 KiB. Between two
    # different limits gRPC would refuse at random.
    ("grpc.max_metadata_size", MAX_HEADERS),
    ("grpc.absolute_max_metadata_size", MAX_HEADERS),
    ("grpc.max_concurrent_streams", MAX_WATCHES_PER_CONNECTION + RESERVED_STREAMS),
    # What a connection may have sent that is not yet processed: without this limit, one that sends
    # frames as fast as it can fills the memory in a second.
    ("grpc.experimental.tcp_max_read_buffer_size", READ_BUFFER),
    ("grpc.experimental.tcp_max_read_chunk_size", READ_BUFFER // 2),
    ("grpc.experimental.tcp_read_chunk_size", READ_BUFFER // 4),
    # Calls that Python has not accepted yet. Beyond the limit gRPC answers CANCELLED; between two
    # different limits it would do so at random.
    ("grpc.server.max_pending_requests", MAX_PENDING),
    ("grpc.server.max_pending_requests_hard_limit", MAX_PENDING),
    # One connection cannot fill that queue in one go (default: 32).
    ("grpc.http2.max_requests_per_read", 4),
    # A failed stream is released at once; by default it is kept for up to a second.
    ("grpc.http.tarpit", 0),
)
"""gRPC's limits: what an untrusted client can make this process hold, and for how long."""

_NO_IPV6: Final = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)

ALB_USER_AGENT: Final = "ELB-HealthChecker/2.0"


class ListenError(Exception):
    """An address cannot be listened on; the message names it and the cause, in one line."""


@dataclass(frozen=True, slots=True)
class Ports:
    """The ports of a server.

    Args:
        listen: Those of `LISTEN`, in its order.
        tls_listen: Those of `TLS_LISTEN`, in its order.
        admin: That of `ADMIN_LISTEN`, None without one.
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

    It touches neither signals nor the event loop's executor.

    Args:
        settings: What to serve, and where.
        shutdown_trigger: Awaited once; returns when it is time to stop. True drains for
            `DRAIN_DELAY` first.
        probes: Probes of your own by service name; they replace those of the settings.
        on_started: Called once the ports answer.

    Raises:
        ListenError: If an address is taken or not this machine's. Nothing is left open.
    """
    trigger = asyncio.ensure_future(shutdown_trigger())
    looking_up = asyncio.ensure_future(_look_up_all(settings))
    try:
        # A name server that does not answer must not keep it from stopping.
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
    guard = Guard(max_watches=settings.max_watches, emit=emit)
    stack.callback(guard.close)
    checker = Checker(
        probes, cache_ttl=settings.cache_ttl, watch_interval=settings.watch_interval, emit=emit
    )
    stack.push_async_callback(checker.close)
    policy = functools.partial(POLICIES[settings.answer], status_callers=settings.status_callers)
    servicer = HealthServicer(
        checker, policy=policy, max_watches=settings.max_watches, guard=guard, emit=emit
    )
    log_filter = functools.partial(_is_worth_a_line, servicer)
    _GRPC_LOG.addFilter(log_filter)
    stack.callback(_GRPC_LOG.removeFilter, log_filter)
    server = grpc.aio.server(options=OPTIONS)
    if settings.reflection:
        server.add_generic_rpc_handlers(reflection.handlers(servicer.guarded))
    server.add_generic_rpc_handlers((AllPaths(servicer),))

    sockets = _admin_sockets(settings, places)
    await stack.enter_async_context(admin.serving(sockets, checker, lambda: servicer.watches))
    # Stopping waits out the grace for open streams, so they end before it.
    stack.push_async_callback(_stop, server, guard, settings.shutdown_grace)
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


async def _stop(server: grpc.aio.Server, guard: Guard, grace: float) -> None:
    """Stop the server, and cut the connections that would keep it from stopping.

    gRPC closes a connection when it has nothing to send: never, while a client floods it with
    frames that have an answer.
    """
    stopping = asyncio.create_task(server.stop(grace))
    end = asyncio.get_running_loop().time() + grace
    while guard.calls and asyncio.get_running_loop().time() < end and not stopping.done():
        await asyncio.wait((stopping,), timeout=STOP_INTERVAL)
    for wait in (STOP_MARGIN, *[STOP_INTERVAL] * STOP_ATTEMPTS):
        await asyncio.wait((stopping,), timeout=wait)
        if stopping.done():
            return
        guard.cut_all()
    stopping.cancel()


def _is_worth_a_line(servicer: HealthServicer, record: logging.LogRecord) -> bool:
    """Return False for a caller that went away while it was answered, an error to grpc.aio."""
    if record.exc_info and isinstance(record.exc_info[1], grpc.aio.InternalError):
        servicer.undelivered()
        return False
    return True


def _targets(settings: Settings) -> dict[str, tuple[Target, ...]]:
    """Return the targets of each service."""
    gateway = tuple(Target(url, settings.probe_headers) for url in settings.probe_url)
    return {GATEWAY: gateway} | {name: (target,) for name, target in settings.services.items()}


def _probes(settings: Settings, targets: Mapping[str, Sequence[Target]]) -> dict[str, Probe]:
    """Make the probe of each service."""
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
    """Log what is served, where, and which settings differ from their defaults."""
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
            "an ALB gets OK from a gateway that is not ready, and takes it for healthy: "
            "GHEALTH_ANSWER or GHEALTH_STATUS_CALLERS sends it the status in the message",
        )


def _certificate(settings: Settings) -> ServerCertificate | None:
    try:
        return None if settings.tls_files is None else ServerCertificate(settings.tls_files)
    except CertificateError as error:  # valid when the settings were read
        raise ListenError(f"cannot serve with TLS: {error}") from None


def _with_ports(addresses: Sequence[Address], ports: Sequence[int]) -> list[str]:
    return [str(replace(a, port=port)) for a, port in zip(addresses, ports, strict=True)]


async def _look_up_all(settings: Settings) -> dict[Address, Sequence[AddressInfo]]:
    """Look up the names in all addresses, side by side."""
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
    """Have gRPC listen on an address, and return the port.

    The sockets that are bound first tell whether and why an address cannot be had: gRPC does not
    say why, and for a name with two addresses, one of them taken, it listens on the other.
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
    """Return the address of a socket without a name in it."""
    host, port, *flow_and_scope = bound.getsockname()
    scope = flow_and_scope[1] if flow_and_scope else 0
    return Address(f"{host}%{scope}" if scope else host, port)


def _admin_sockets(
    settings: Settings, places: Mapping[Address, Sequence[AddressInfo]]
) -> list[socket.socket]:
    """Bind the admin port. Without the default one ghealth does its work all the same."""
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
    """Bind an address: a socket for each place that its host stands for."""
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
            port = bound.getsockname()[1]  # a free one is the same for all
    except OSError as error:
        for bound in sockets:
            bound.close()
        # On a node without IPv6, [::] is 0.0.0.0, as for gRPC, and /etc/hosts may still have ::1
        # for localhost.
        ipv4 = [place for place in places if place[0] == socket.AF_INET]
        if address.host == ANY_IPV6:
            ipv4 = [(socket.AF_INET, socket.SOCK_STREAM, 0, "", (ANY_IPV4, address.port))]
        if error.errno in _NO_IPV6 and ipv4 and ipv4 != places:
            return _bound(address, ipv4)
        raise ListenError(f"cannot listen on {address}: {error.strerror}") from None
    return sockets

"""Binds and listens; nothing is looked up."""

import errno
import logging
import socket
from typing import Final

import grpc

from ghealth.address import ANY_IPV4, ANY_IPV6, LOCALHOST, LOOPBACK, Address
from ghealth.events import log_event
from ghealth.server.tls import ServerCertificate
from ghealth.settings import Settings

_log = logging.getLogger(__name__)

_NOT_HERE: Final = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)
"""The machine does not have an address, or no address of this kind."""


class ListenError(Exception):
    """ghealth cannot listen; the message has the address and the cause."""


def listen(
    server: grpc.aio.Server, address: Address, certificate: ServerCertificate | None = None
) -> int:
    """Make gRPC listen on an address, and return the port.

    The address is bound without gRPC first, because gRPC does not report why it cannot listen. And
    if `localhost` has two addresses and one is in use, gRPC would listen on the other one only.

    Raises:
        ListenError: If the address is in use or missing.
    """
    bound = bind(address)
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


def admin_sockets(settings: Settings) -> list[socket.socket]:
    """Bind the admin port.

    If the default one cannot be bound, log a warning and return no sockets: ghealth works without
    it.

    Raises:
        ListenError: If one that was set is in use or missing.
    """
    if not settings.admin_listen:
        return []
    (address,) = settings.admin_listen
    is_default = "admin_listen" not in settings.model_fields_set
    if is_default and address.port in {used.port for used in settings.listen + settings.tls_listen}:
        problem = f"{address} has the port of another address"
    else:
        try:
            return bind(address)
        except ListenError as error:
            if not is_default:
                raise
            problem = str(error)
    log_event(
        _log, logging.WARNING, "admin_unavailable", f"no status page and no metrics: {problem}"
    )
    return []


def bind(address: Address) -> list[socket.socket]:
    """Bind an address, and return a socket for each IP address of its host.

    On a node without IPv6, `[::]` is 0.0.0.0, as in gRPC, and `localhost` is 127.0.0.1.

    Raises:
        ListenError: If it is in use or missing.
    """
    several = {ANY_IPV6: (ANY_IPV6, ANY_IPV4), LOCALHOST: LOOPBACK}
    bound: list[socket.socket] = []
    missing = None
    try:
        for host in several.get(address.host, (address.host,)):
            try:
                # With port 0, all sockets have the port of the first.
                bound.append(_bound(host, bound[0].getsockname()[1] if bound else address.port))
            except OSError as error:
                if error.errno not in _NOT_HERE:
                    raise
                missing = error
            if bound and host == ANY_IPV6:  # it accepts IPv4 too
                break
        if missing and not bound:
            raise missing
    except OSError as error:
        for one in bound:
            one.close()
        why = (error.strerror or "").partition(" (while")[0]  # create_server adds the address
        raise ListenError(f"cannot listen on {address}: {why}") from None
    return bound


def _bound(host: str, port: int) -> socket.socket:
    family, _, _, _, place = socket.getaddrinfo(host, port, flags=socket.AI_NUMERICHOST)[0]
    dualstack = host == ANY_IPV6 and socket.has_dualstack_ipv6()
    return socket.create_server(place, family=family, dualstack_ipv6=dualstack)


def _literal(bound: socket.socket) -> Address:
    """Return the address of a socket, with an IP address as its host."""
    host, port, *flow_and_scope = bound.getsockname()
    scope = flow_and_scope[1] if flow_and_scope else 0
    return Address(f"{host}%{scope}" if scope else host, port)

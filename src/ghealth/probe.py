"""Asking a target whether it is ready: one attempt, one value."""

import asyncio
import errno
import ipaddress
import socket
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import h11

from ghealth import __version__, reasons
from ghealth.matcher import Matcher
from ghealth.target import Target

LOOPBACK: Final = ("127.0.0.1", "::1")
"""Where `localhost` is, whatever /etc/hosts says: Istio binds its readiness listener to the IPv6
side alone on clusters without IPv4."""

DESCRIPTOR_PATIENCE: Final = 0.05
"""Seconds between tries to open a socket while this process has no descriptor left."""

NEXT_ADDRESS: Final = 0.5
"""Seconds after which a name's next address is tried: the first may be a machine that is gone."""

LONGEST_HEADERS: Final = 100 * 1024
"""Bytes of headers that a target may send."""

_READ_SIZE: Final = 16 * 1024


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """What one attempt found.

    Args:
        ready: Whether the target said that it is ready.
        reason: A short, fixed text from `ghealth.reasons`.
    """

    ready: bool
    reason: str


class Probe(Protocol):
    """One way of asking one target. A sick target is a result; only a bug raises."""

    async def __call__(self) -> ProbeResult:
        """Make one attempt. It may hang: the caller bounds its time by cancelling it."""
        ...


def trust(targets: Sequence[Target]) -> ssl.SSLContext | None:
    """Read whom a process trusts, if one of its targets wants TLS.

    Certificates are verified against the system's store; OpenSSL reads `SSL_CERT_FILE` and
    `SSL_CERT_DIR`. Without an https target nothing is read: it would cost start-up and memory.

    Args:
        targets: All targets of the process.
    """
    return ssl.create_default_context() if any(target.tls for target in targets) else None


class HttpProbe:
    """Ready when a GET is answered with a success code: redirects not followed, body not read.

    It speaks through h11, the parser under httpx, and has no use for what a client adds to it: a
    pool (each attempt has a connection of its own, since a kept-alive one goes on answering after
    the listener stopped accepting), redirects, cookies, proxies.

    Args:
        target: Whom to ask.
        success_codes: The status codes that mean ready.
        headers: Sent with each request, in place of ghealth's own of the same name.
        tls: Whom to trust; for an https target it must be given.
    """

    def __init__(
        self,
        target: Target,
        *,
        success_codes: Matcher,
        headers: Mapping[str, str],
        tls: ssl.SSLContext | None,
    ) -> None:
        self._target = target
        self._success_codes = success_codes
        self._request = _request(target, headers)
        self._tls = tls if target.tls else None

    async def __call__(self) -> ProbeResult:
        """Make one attempt, on a connection of its own.

        Returns:
            The status code's meaning or, for every way a peer can misbehave, a reason.
        """
        while True:
            try:
                reader, writer = await self._connect()
                try:
                    return await self._exchange(reader, writer)
                finally:
                    # Not close(): over TLS it would wait for the peer's consent.
                    writer.transport.abort()
            except OSError as error:
                if error.errno not in _NO_DESCRIPTOR:
                    return ProbeResult(ready=False, reason=_reason(error))
                # Strangers took them all, which is nothing that the gateway said: try until one
                # is free, for as long as the attempt may take.
                await asyncio.sleep(DESCRIPTOR_PATIENCE)

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect to the first address that lets us."""
        *addresses, last = await self._addresses()
        first_error = None
        for address in addresses:
            # A loopback address that keeps us waiting is there.
            patience = None if address in LOOPBACK else NEXT_ADDRESS
            try:
                async with asyncio.timeout(patience):
                    return await self._open(address)
            except OSError as error:
                if error.errno in _NO_DESCRIPTOR:
                    raise
                first_error = first_error or error
        try:
            return await self._open(last)
        except OSError as error:
            # The first address names the reason: the others may be of a family that this machine
            # does not have, which tells the operator nothing.
            raise first_error or error from None

    async def _addresses(self) -> Sequence[str]:
        """Find where the target's host is."""
        host = self._target.host
        if host == "localhost":
            return LOOPBACK
        try:
            return (str(ipaddress.ip_address(host)),)
        except ValueError:
            loop = asyncio.get_running_loop()
            # A thread of the loop's executor: the event loop's own look-ups have but four.
            found = await loop.run_in_executor(None, _look_up, host, self._target.port)
            return tuple(dict.fromkeys(found))

    async def _open(self, address: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        name = self._target.host if self._tls else None
        return await asyncio.open_connection(
            address, self._target.port, ssl=self._tls, server_hostname=name
        )

    async def _exchange(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> ProbeResult:
        """Send the request and wait for the headers of its answer."""
        connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=LONGEST_HEADERS)
        for event in (self._request, h11.EndOfMessage()):
            writer.write(connection.send(event) or b"")
        try:
            while not isinstance(answer := connection.next_event(), h11.Response):
                if answer is h11.NEED_DATA:
                    data = await reader.read(_READ_SIZE)
                    if not data:
                        return ProbeResult(ready=False, reason=reasons.CLOSED)
                    connection.receive_data(data)
        except h11.RemoteProtocolError:
            return ProbeResult(ready=False, reason=reasons.NOT_HTTP)
        code = answer.status_code
        return ProbeResult(code in self._success_codes, reasons.answered(code))


def _request(target: Target, headers: Mapping[str, str]) -> h11.Request:
    ours = {
        "Host": target.authority,
        "User-Agent": f"ghealth/{__version__}",
        "Accept": "*/*",
        "Connection": "close",
    }
    if target.credentials is not None:
        ours["Authorization"] = f"Basic {target.credentials}"
    theirs = {name.lower() for name in headers}
    kept = [(name, value) for name, value in ours.items() if name.lower() not in theirs]
    return h11.Request(method="GET", target=target.path, headers=[*kept, *headers.items()])


def _look_up(host: str, port: int) -> list[str]:
    """Resolve a name; what is no name has no address either."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except UnicodeError:
        raise socket.gaierror(socket.EAI_NONAME, "not a name") from None
    return [str(place[0]) for *_, place in found]


_REASONS: Final[Sequence[tuple[type[OSError], str]]] = (
    # The first that fits; a subclass before its base.
    (ssl.SSLCertVerificationError, reasons.CERTIFICATE),
    (ssl.SSLError, reasons.TLS),
    (socket.gaierror, reasons.NAME_UNRESOLVED),
    (ConnectionRefusedError, reasons.REFUSED),
    (ConnectionError, reasons.RESET),
    (OSError, reasons.UNREACHABLE),
)
_NO_DESCRIPTOR: Final = (errno.EMFILE, errno.ENFILE)


def _reason(error: OSError) -> str:
    return next(reason for kind, reason in _REASONS if isinstance(error, kind))

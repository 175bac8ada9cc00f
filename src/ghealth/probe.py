"""Probes: one request to a target, one result."""

import asyncio
import errno
import functools
import socket
import ssl
import struct
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol, Self

import h11
import httpcore
import httpx

from ghealth import __version__
from ghealth.health import Reason, ReasonKind
from ghealth.matcher import Matcher
from ghealth.names import AddressInfo, look_up

LOOPBACK: Final = ("127.0.0.1", "::1")
"""The addresses of `localhost`, whatever /etc/hosts contains. On clusters without IPv4, Istio binds
its readiness listener to IPv6 only."""

CONNECTION_ATTEMPT_DELAY: Final = 0.25
"""Seconds until the next address of a name is also tried (RFC 8305, section 8)."""

LOCAL_RETRY_DELAY: Final = 0.05
"""Seconds between attempts while this process lacks a descriptor, a port or a thread."""

MAX_RESPONSE_HEAD: Final = 128 * 1024
"""Bytes that a target may send before the end of its response headers, 1xx responses included."""

READ_SIZE: Final = 4096
"""Bytes that are parsed between two turns of the event loop."""


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """The result of a probe.

    Args:
        ready: Whether the target is ready.
        reason: Why; `because` makes a result with any text.
    """

    ready: bool
    reason: Reason

    @classmethod
    def because(cls, text: str, *, ready: bool) -> Self:
        """Make a result whose reason is a text.

        Args:
            text: The reason: short, without secrets, since it is sent to callers.
            ready: Whether the target is ready.
        """
        return cls(ready, Reason(ReasonKind.CUSTOM, text))


class Probe(Protocol):
    """Probes one target.

    A target that is not ready is a result. An exception is a bug: it is logged, and the service
    is not serving. ghealth limits the time of a probe by cancelling it.
    """

    async def __call__(self) -> ProbeResult:
        """Probe once."""
        ...


class WithTimeout:
    """A probe that returns within a time limit.

    Args:
        probe: The probe.
        seconds: Its time limit.
        clock: Seconds on a monotonic clock.
    """

    def __init__(
        self, probe: Probe, seconds: float, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._probe = probe
        self._seconds = seconds
        self._clock = clock

    async def __call__(self) -> ProbeResult:
        """Probe once; a probe that takes longer is not ready."""
        started = self._clock()
        late = ProbeResult(ready=False, reason=Reason(ReasonKind.TIMED_OUT, f"{self._seconds:g} s"))
        try:
            async with asyncio.timeout(self._seconds):
                result = await self._probe()
        except TimeoutError:
            return late
        # After a SIGSTOP a response that was buffered long ago and the expired timer come in the
        # same turn of the event loop, and the response may be first.
        return late if self._clock() - started > self._seconds else result


class AllOf:
    """Several probes at the same time: ready if all of them are.

    Args:
        probes: The probes. A result that is not ready names the first such probe in this order.
    """

    def __init__(self, probes: Sequence[Probe]) -> None:
        self._probes = probes

    async def __call__(self) -> ProbeResult:
        """Probe each target once."""
        async with asyncio.TaskGroup() as group:
            probing = [group.create_task(_result_of(probe)) for probe in self._probes]
        results = [task.result() for task in probing]
        for number, result in enumerate(results, 1):
            if not result.ready:
                position = (number, len(results))
                return ProbeResult(ready=False, reason=replace(result.reason, position=position))
        return results[-1]


async def _result_of(probe: Probe) -> ProbeResult:
    return await probe()


class HttpProbe:
    """A GET request: ready if the response has a success code.

    Redirects are not followed, the body is not read, and proxy variables are ignored. Each
    request has its own connection: a kept one would still work after the target has stopped
    accepting new ones.

    Args:
        url: Where to send it; user info becomes basic authentication (RFC 7617).
        success_codes: The status codes that mean ready.
        headers: Sent with each request; they replace ghealth's headers with the same names.
        trust: Verifies the target's certificate; with None, no certificate is trusted.

    Raises:
        ValueError: If HTTP does not allow the request.
    """

    def __init__(
        self,
        url: httpx.URL,
        *,
        success_codes: Matcher,
        headers: Mapping[str, str],
        trust: ssl.SSLContext | None = None,
    ) -> None:
        self._success_codes = success_codes
        # Without a context, httpx would read the trusted certificates for each request.
        self._trust = trust or ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._addresses = _Addresses()
        self._request = _request(url, headers)

    async def __call__(self) -> ProbeResult:
        """Send one request.

        Returns:
            Whether the status code is a success code, or why there is no response.
        """
        while True:
            network = _Network(self._addresses)
            try:
                async with network, _Transport(self._trust, network) as transport:
                    response = await transport.handle_async_request(self._request)
                    await response.aclose()
            except (httpx.TransportError, h11.RemoteProtocolError) as error:
                causes = tuple(_causes(error))
                if not any(isinstance(cause, OSError) and _is_local(cause) for cause in causes):
                    return ProbeResult(ready=False, reason=_reason(causes))
                # A lack of resources here is not the target's fault: try again until the timeout.
                await asyncio.sleep(LOCAL_RETRY_DELAY)
            else:
                code = response.status_code
                return ProbeResult(
                    code in self._success_codes, Reason(ReasonKind.ANSWERED, str(code))
                )


class ProbeKind(Protocol):
    """Creates the probe for a URL."""

    def __call__(
        self,
        url: httpx.URL,
        *,
        success_codes: Matcher,
        headers: Mapping[str, str],
        trust: ssl.SSLContext | None = None,
    ) -> Probe:
        """Create a probe; the arguments are those of `HttpProbe`."""
        ...


PROBES: Final[Mapping[str, ProbeKind]] = {"http": HttpProbe, "https": HttpProbe}
"""The probe for a URL, by its scheme."""


def _request(url: httpx.URL, headers: Mapping[str, str]) -> httpx.Request:
    request = httpx.Request(
        "GET",
        url,
        headers={"User-Agent": f"ghealth/{__version__}", "Accept": "*/*", "Connection": "close"},
    )
    if url.userinfo:
        request = next(httpx.BasicAuth(url.username, url.password).auth_flow(request))
    request.headers.update(headers)
    try:
        h11.Request(method="GET", target=url.raw_path, headers=request.headers.raw)
    except h11.LocalProtocolError as error:
        raise ValueError(str(error)) from None
    return request


class _Transport(httpx.AsyncHTTPTransport):
    """httpx's transport over ghealth's network backend, for one request."""

    def __init__(self, trust: ssl.SSLContext, network: httpcore.AsyncNetworkBackend) -> None:
        super().__init__(verify=trust, trust_env=False)
        # httpx cannot pass a network backend to httpcore, which accepts one.
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=trust, max_keepalive_connections=0, network_backend=network
        )


class _Addresses:
    """Finds the addresses of one host."""

    def __init__(self) -> None:
        self._looking_up: asyncio.Task[Sequence[AddressInfo]] | None = None

    async def find(self, host: str, port: int) -> Sequence[str]:
        """Return the addresses of a host, each once.

        If a probe ends during a look-up, the next probe waits for the same look-up: a name server
        that does not answer blocks only one thread per target.

        Args:
            host: A name or an IP address.
            port: The port that will be connected to.

        Raises:
            OSError: If there is no address.
        """
        if host == "localhost":
            return LOOPBACK
        if self._looking_up is None or self._looking_up.done():
            self._looking_up = asyncio.create_task(look_up(host, port))
            self._looking_up.add_done_callback(_retrieve)
        await asyncio.wait((self._looking_up,))
        return list(dict.fromkeys(str(place[0]) for *_, place in self._looking_up.result()))


def _retrieve(looking_up: "asyncio.Task[Any]") -> None:
    """Keep asyncio from logging a failure that no probe waits for."""
    if not looking_up.cancelled():
        looking_up.exception()


class _Network(httpcore.AnyIOBackend):
    """Connects for one request, and closes the connection even if the request fails.

    Args:
        addresses: Finds the addresses of the host; the first one that accepts is used.
    """

    _SOCKET_OPTIONS: Final = (
        # Closing sends a RST, so that no port stays in TIME_WAIT for a minute after each probe.
        (socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)),
    )

    def __init__(self, addresses: _Addresses) -> None:
        self._addresses = addresses
        self._stream: httpcore.AsyncNetworkStream | None = None

    async def connect_tcp(
        self, host: str, port: int, *_: Any, **__: Any
    ) -> httpcore.AsyncNetworkStream:
        """Connect; httpcore's other arguments are not used."""
        try:
            addresses = await self._addresses.find(host, port)
        except OSError as error:
            raise httpcore.ConnectError(str(error)) from error
        connect = functools.partial(
            super().connect_tcp, port=port, socket_options=self._SOCKET_OPTIONS
        )
        self._stream = await _first(connect, addresses)
        return _Stream(self._stream)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._stream is not None:
            # httpcore leaves it open if a TLS handshake is cancelled.
            await self._stream.aclose()


Connect = Callable[[str], Awaitable[httpcore.AsyncNetworkStream]]


async def _first(connect: Connect, addresses: Sequence[str]) -> httpcore.AsyncNetworkStream:
    """Connect to the addresses side by side, each a little later than the one before (RFC 8305)."""
    race = _Race(connect)
    waiting = list(addresses)
    attempts: list[asyncio.Task[Exception | None]] = []
    pending: set[asyncio.Task[Exception | None]] = set()
    try:
        while (waiting or pending) and not race.winner.done():
            if waiting:
                attempts.append(asyncio.create_task(race.attempt(waiting.pop(0))))
                pending.add(attempts[-1])
            _, pending = await asyncio.wait(
                pending,
                timeout=CONNECTION_ATTEMPT_DELAY if waiting else None,
                return_when=asyncio.FIRST_COMPLETED,
            )
    except BaseException:
        if race.winner.done():
            await race.winner.result().aclose()
        raise
    finally:
        race.winner.cancel()
        for task in attempts:
            task.cancel()
    if race.winner.cancelled():
        # The first address names the reason: the others may be of a family that this machine does
        # not have.
        raise attempts[0].result() or httpcore.ConnectError
    return race.winner.result()


class _Race:
    """Attempts to connect, of which the first connection is used.

    Args:
        connect: Connects to an address.
    """

    def __init__(self, connect: Connect) -> None:
        self._connect = connect
        self.winner: asyncio.Future[httpcore.AsyncNetworkStream]
        self.winner = asyncio.get_running_loop().create_future()

    async def attempt(self, address: str) -> Exception | None:
        """Connect to one address, and return the failure if there is one."""
        try:
            return await self._offer(await self._connect(address))
        except Exception as error:
            return error

    async def _offer(self, stream: httpcore.AsyncNetworkStream) -> Exception | None:
        if self.winner.done():
            await stream.aclose()
        else:
            self.winner.set_result(stream)
        return None


class _Stream(httpcore.AsyncNetworkStream):
    """A connection that reads in small parts, up to the limit of a response head."""

    def __init__(self, stream: httpcore.AsyncNetworkStream) -> None:
        self._stream = stream
        self._left = MAX_RESPONSE_HEAD

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        if self._left <= 0:
            raise h11.RemoteProtocolError("response headers are too long")
        data = await self._stream.read(min(max_bytes, READ_SIZE), timeout)
        self._left -= len(data)
        return data

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        await self._stream.write(buffer, timeout)

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.AsyncNetworkStream:
        return _Stream(await self._stream.start_tls(ssl_context, server_hostname, timeout))

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an exception and its causes.

    `raise … from None` hides a cause only from tracebacks, and anyio wraps some in groups.
    """
    while error is not None:
        yield error
        if isinstance(error, BaseExceptionGroup):
            for part in error.exceptions:
                yield from _causes(part)
        error = error.__cause__ or error.__context__


_KINDS: Final[Sequence[tuple[type[BaseException], ReasonKind]]] = (
    # The first class that any cause is an instance of; subclasses come before their bases.
    (ssl.SSLCertVerificationError, ReasonKind.CERTIFICATE),
    (ssl.SSLError, ReasonKind.TLS),
    (socket.gaierror, ReasonKind.NAME_UNRESOLVED),
    (ConnectionRefusedError, ReasonKind.REFUSED),
    (ConnectionError, ReasonKind.RESET),
    (h11.RemoteProtocolError, ReasonKind.NOT_HTTP),
    (OSError, ReasonKind.UNREACHABLE),
    (httpx.ConnectError, ReasonKind.UNREACHABLE),
    (httpx.TransportError, ReasonKind.CLOSED),
)


def _reason(causes: Sequence[BaseException]) -> Reason:
    return Reason(
        next(kind for of, kind in _KINDS if any(isinstance(cause, of) for cause in causes))
    )


_LOCAL_ERRORS: Final = frozenset(
    # This machine has no free descriptor, port, buffer, memory or thread.
    (errno.EMFILE, errno.ENFILE, errno.EADDRNOTAVAIL, errno.ENOBUFS, errno.ENOMEM, errno.EAGAIN)
)


def _is_local(error: OSError) -> bool:
    # gaierror has different error numbers.
    return not isinstance(error, socket.gaierror) and error.errno in _LOCAL_ERRORS

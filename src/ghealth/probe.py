"""Probes: one request to a target, one result."""

import asyncio
import errno
import socket
import ssl
import struct
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol, Self

import h11
import httpcore
import httpx

from ghealth import __version__
from ghealth.health import Reason, ReasonKind
from ghealth.matcher import Matcher
from ghealth.names import Addresses

CONNECTION_ATTEMPT_DELAY: Final = 0.25
"""Seconds until the next address of a name is also tried (RFC 8305, section 8)."""

LOCAL_RETRY_DELAY: Final = 0.05
"""Seconds between attempts while this process lacks a descriptor, a port or a thread."""


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
        timeout = asyncio.timeout(self._seconds)
        try:
            async with timeout:
                result = await self._probe()
        except (TimeoutError, asyncio.CancelledError):
            # In Python 3.11 and 3.12, this is a CancelledError after a TaskGroup inside the probe
            # has failed.
            if timeout.expired():
                return late
            raise
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
        # Not a TaskGroup: after one in which a probe failed, `cancelling()` of this task stays 1
        # (Python 3.11 and 3.12), as if the probe had been cancelled.
        probing = [asyncio.ensure_future(probe()) for probe in self._probes]
        try:
            results = await asyncio.gather(*probing)
        finally:
            for task in probing:
                task.cancel()
        for number, result in enumerate(results, 1):
            if not result.ready:
                position = (number, len(results))
                return ProbeResult(ready=False, reason=replace(result.reason, position=position))
        return results[-1]


class HttpProbe:
    """A GET request: ready if the response has a success code.

    Redirects are not followed, the body is not read, and proxy variables are ignored. Each
    request has its own connection: a kept one would still work after the target has stopped
    accepting new ones.

    Args:
        url: Where to send it; user info becomes basic authentication (RFC 7617).
        success_codes: The status codes that mean ready.
        headers: Sent with each request; they replace ghealth's headers with the same names.
        trust: Verifies the target's certificate; required for https.
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
        self._trust = trust
        self._request = _request(url, headers)
        # SNI and the certificate have the name without its final dot (RFC 6066, section 3).
        self._server_name = url.raw_host.decode().removesuffix(".")
        self._addresses = Addresses(url.raw_host.decode())

    async def __call__(self) -> ProbeResult:
        """Send one request.

        Returns:
            Whether the status code is a success code, or why there is no response.
        """
        while True:
            try:
                code = await self._ask_first(await self._addresses.find())
            except _FAILURES as error:
                if _errno(error) not in _LOCAL_ERRORS:
                    is_tls = self._request.url.scheme == "https"
                    return ProbeResult(ready=False, reason=Reason(_kind(error, is_tls=is_tls)))
                # A lack of resources here is not the target's fault: try again until the timeout.
                await asyncio.sleep(LOCAL_RETRY_DELAY)
            else:
                reason = Reason(ReasonKind.ANSWERED, str(code))
                return ProbeResult(code in self._success_codes, reason)

    async def _ask_first(self, addresses: Sequence[str]) -> int:
        """Return the status code of the address that connects first.

        Each is tried a little later than the one before, or when that one has failed (RFC 8305).
        """
        connected: asyncio.Future[asyncio.Task[int]] = asyncio.get_running_loop().create_future()
        attempts: list[asyncio.Task[int]] = []
        try:
            for address in addresses:
                attempts.append(asyncio.create_task(self._ask(address, connected)))
                await asyncio.wait(
                    (connected, attempts[-1]),
                    timeout=CONNECTION_ATTEMPT_DELAY,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                if connected.done():
                    break
            else:
                all_failed = asyncio.gather(*attempts, return_exceptions=True)
                await asyncio.wait((connected, all_failed), return_when=asyncio.FIRST_COMPLETED)
            if connected.done():
                return await connected.result()
            raise min(filter(None, (attempt.exception() for attempt in attempts)), key=_rank)
        finally:
            for attempt in attempts:
                attempt.cancel()
            await asyncio.gather(*attempts, return_exceptions=True)

    async def _ask(self, address: str, connected: "asyncio.Future[asyncio.Task[int]]") -> int:
        """Send the request to one address, unless another one has already connected."""
        streams: list[httpcore.AsyncNetworkStream] = []

        async def trace(event: str, info: Mapping[str, Any]) -> None:
            if event == "connection.connect_tcp.complete":
                streams.append(info["return_value"])
                # In the attempt that connects second, this raises, before a request is sent.
                connected.set_result(asyncio.current_task())  # type: ignore[arg-type]

        url = self._request.url
        request = httpcore.Request(
            "GET",
            httpcore.URL(
                scheme=url.raw_scheme, host=address.encode(), port=url.port, target=url.raw_path
            ),
            headers=self._request.headers.raw,
            extensions={"sni_hostname": self._server_name, "trace": trace},
        )
        # httpx would send it by httpcore too, but through a pool, which takes a tenth more time.
        connection = httpcore.AsyncHTTPConnection(
            request.url.origin, ssl_context=self._trust, socket_options=_SOCKET_OPTIONS
        )
        try:
            return (await connection.handle_async_request(request)).status
        finally:
            # The connection has nothing else to close. httpcore leaves the stream open if a TLS
            # handshake is cancelled.
            for stream in streams:
                await stream.aclose()


PROBES: Final[Mapping[str, Callable[..., Probe]]] = {"http": HttpProbe, "https": HttpProbe}
"""What creates the probe for a URL, by its scheme; the arguments are those of `HttpProbe`."""


def _request(url: httpx.URL, headers: Mapping[str, str]) -> httpx.Request:
    request = httpx.Request(
        "GET",
        url,
        headers={"User-Agent": f"ghealth/{__version__}", "Accept": "*/*", "Connection": "close"},
    )
    if url.userinfo:
        request = next(httpx.BasicAuth(url.username, url.password).auth_flow(request))
    request.headers.update(headers)
    return request


# Closing sends a RST, so that no port stays in TIME_WAIT for a minute after each probe.
_SOCKET_OPTIONS: Final = ((socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)),)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an exception and its causes; `raise … from None` hides one only from tracebacks."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


_FAILURES: Final = (OSError, httpcore.NetworkError, httpcore.ProtocolError)

_KINDS: Final[Sequence[tuple[type[BaseException], ReasonKind]]] = (
    # The first class that any cause is an instance of; subclasses come before their bases.
    # Also after the handshake: an alert, a bad record, with TLS 1.3 a missing client certificate.
    (ssl.SSLError, ReasonKind.TLS),
    (socket.gaierror, ReasonKind.NAME_UNRESOLVED),
    (ConnectionRefusedError, ReasonKind.REFUSED),
    (ConnectionError, ReasonKind.RESET),
    (h11.RemoteProtocolError, ReasonKind.NOT_HTTP),
    (OSError, ReasonKind.UNREACHABLE),
    (httpcore.NetworkError, ReasonKind.CLOSED),
    (httpcore.ProtocolError, ReasonKind.CLOSED),
)

_CERTIFICATE_KINDS: Final[Mapping[int, ReasonKind]] = {
    # OpenSSL's X509_V_ERR_… (x509_vfy.h); ReasonKind.CERTIFICATE has the others.
    10: ReasonKind.CERTIFICATE_EXPIRED,
    **dict.fromkeys((18, 19, 20, 21), ReasonKind.CERTIFICATE_AUTHORITY),
    **dict.fromkeys((62, 64), ReasonKind.CERTIFICATE_NAME),
}


def _kind(error: BaseException, *, is_tls: bool) -> ReasonKind:
    causes = tuple(_causes(error))
    for cause in causes:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return _CERTIFICATE_KINDS.get(cause.verify_code, ReasonKind.CERTIFICATE)
    kind = next(kind for of, kind in _KINDS if any(isinstance(cause, of) for cause in causes))
    return ReasonKind.TLS_RESET if is_tls and kind is ReasonKind.RESET else kind


_LOCAL_ERRORS: Final = frozenset(
    # This machine has no free descriptor, port, buffer, memory or thread.
    (errno.EMFILE, errno.ENFILE, errno.EADDRNOTAVAIL, errno.ENOBUFS, errno.ENOMEM, errno.EAGAIN)
)

# The errors of an IPv6 address on a node without IPv6, and the other way round.
_NO_FAMILY: Final = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT, errno.ENETUNREACH)


def _errno(error: BaseException) -> int | None:
    """Return the number of the operating system's error that caused an exception."""
    # Name servers' errors have other numbers.
    causes = (cause for cause in _causes(error) if isinstance(cause, OSError))
    return next((cause.errno for cause in causes if cause.errno), None)


def _rank(error: BaseException) -> int:
    """Order the failures of several addresses: a lack of resources here names the reason first."""
    number = _errno(error)
    return 2 if number in _NO_FAMILY else 1 - (number in _LOCAL_ERRORS)

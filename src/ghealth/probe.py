"""Asking a target whether it is ready: one attempt, one value."""

import asyncio
import errno
import functools
import socket
import ssl
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import httpx

from ghealth import __version__, reasons
from ghealth.matcher import Matcher

LOOPBACK: Final = ("127.0.0.1", "::1")
"""Where `localhost` is, whatever /etc/hosts says: Istio binds its readiness listener to the IPv6
side alone on clusters without IPv4."""

DESCRIPTOR_PATIENCE: Final = 0.05
"""Seconds between tries to open a socket while this process has no descriptor left."""


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


Transport = Callable[[], httpx.AsyncBaseTransport]
"""Makes what one attempt sends its requests through."""


def transport_for(urls: Sequence[httpx.URL]) -> Transport:
    """Choose how the `HttpProbe`s of a process send their requests.

    Each attempt has a transport of its own, and with it a connection of its own: a kept-alive one
    goes on answering after the listener stopped accepting, and the pool of a shared transport
    keeps a trace of attempts that were cancelled at an unlucky moment. It is a transport and no
    `httpx.Client`, which would read `HTTP_PROXY` and carry the loopback probe off. Certificates
    are verified against the system's store (OpenSSL reads `SSL_CERT_FILE` and `SSL_CERT_DIR`),
    which is read only if a target wants TLS.

    Args:
        urls: All targets of the process.
    """
    wants_tls = any(url.scheme == "https" for url in urls)
    # The bare context of the plain-http process trusts nobody; it spares the transport making one.
    tls = ssl.create_default_context() if wants_tls else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    return functools.partial(httpx.AsyncHTTPTransport, verify=tls, trust_env=False)


class HttpProbe:
    """Ready when a GET is answered with a success code: redirects not followed, body not read.

    Args:
        url: The target, http or https; a user and password in it become basic authentication.
        success_codes: The status codes that mean ready.
        headers: Sent with each request, in place of ghealth's own of the same name.
        transport: Makes what one attempt sends its requests through.
    """

    def __init__(
        self,
        url: httpx.URL,
        *,
        success_codes: Matcher,
        headers: Mapping[str, str],
        transport: Transport,
    ) -> None:
        self._success_codes = success_codes
        self._transport = transport
        hosts = LOOPBACK if url.host == "localhost" else (url.host,)
        self._requests = [_request(url, host, headers) for host in hosts]

    async def __call__(self) -> ProbeResult:
        """Make one attempt, on a connection of its own.

        Returns:
            The status code's meaning or, for every way a peer can misbehave, a reason.
        """
        while True:
            try:
                return await self._ask()
            except _NoDescriptorError:
                # Strangers took them all, which is nothing that the gateway said: try until one
                # is free, for as long as the attempt may take.
                await asyncio.sleep(DESCRIPTOR_PATIENCE)

    async def _ask(self) -> ProbeResult:
        failure = None
        for request in self._requests:
            try:
                async with self._transport() as transport:
                    response = await transport.handle_async_request(request)
                    await response.aclose()
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                # The first address names the reason: the second may be of a family that this
                # machine does not have, which tells the operator nothing.
                failure = failure or ProbeResult(ready=False, reason=_reason(error))
            except (httpx.NetworkError, httpx.RemoteProtocolError) as error:
                return ProbeResult(ready=False, reason=_reason(error))
            else:
                code = response.status_code
                return ProbeResult(code in self._success_codes, reasons.answered(code))
        assert failure is not None  # noqa: S101 - there is always an address to try
        return failure


class _NoDescriptorError(Exception):
    """This process may open no further socket now."""


def _request(url: httpx.URL, host: str, headers: Mapping[str, str]) -> httpx.Request:
    """Build the request to `host` that names the host of `url`."""
    request = httpx.Request(
        "GET",
        url.copy_with(host=host),
        headers={
            "Host": url.netloc.decode("ascii"),
            "User-Agent": f"ghealth/{__version__}",
            "Accept": "*/*",
            "Connection": "close",
        },
        extensions={"sni_hostname": url.raw_host.decode("ascii")},
    )
    if url.userinfo:
        request = next(httpx.BasicAuth(url.username, url.password).auth_flow(request))
    request.headers.update(headers)
    return request


_REASONS: Final[Sequence[tuple[type[Exception], str]]] = (
    # The first that fits anywhere in the chain of causes; a subclass before its base.
    (ssl.SSLCertVerificationError, reasons.CERTIFICATE),
    (ssl.SSLError, reasons.TLS),
    (socket.gaierror, reasons.NAME_UNRESOLVED),
    (ConnectionRefusedError, reasons.REFUSED),
    (ConnectionResetError, reasons.RESET),
    (BrokenPipeError, reasons.RESET),
    (httpx.ConnectError, reasons.UNREACHABLE),
    (httpx.ConnectTimeout, reasons.UNREACHABLE),
)
_NO_DESCRIPTOR: Final = (errno.EMFILE, errno.ENFILE)
_CLOSED_EARLY: Final = "Server disconnected without sending a response."


def _reason(error: httpx.TransportError) -> str:
    """Find the reason that fits an exception of the transport, if it is the target's doing."""
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__
    if any(isinstance(link, OSError) and link.errno in _NO_DESCRIPTOR for link in chain):
        raise _NoDescriptorError from error
    for kind, reason in _REASONS:
        if any(isinstance(link, kind) for link in chain):
            return reason
    if isinstance(error, httpx.RemoteProtocolError) and str(error) != _CLOSED_EARLY:
        return reasons.NOT_HTTP
    return reasons.CLOSED

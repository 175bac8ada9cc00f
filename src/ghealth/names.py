"""Look-ups of host names that block neither the event loop, its executor nor the exit."""

import asyncio
import errno
import socket
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import suppress

from ghealth.address import LOCALHOST, LOOPBACK


class Addresses:
    """The IP addresses of one host, looked up again for each probe.

    A look-up has a daemon thread: a name server that does not answer can block it for half a
    minute, which must delay neither other look-ups nor the exit of the process. There is one at a
    time: if a probe ends before its look-up, the next probe waits for the same one.

    Args:
        host: A name or an IP address, without brackets.
    """

    def __init__(self, host: str) -> None:
        self._host = host
        self._fixed: Sequence[str] = ()
        self._found: Future[Sequence[str]] | None = None
        if host.removesuffix(".") == LOCALHOST:
            # Whatever /etc/hosts contains. On clusters without IPv4, Istio binds its readiness
            # listener to IPv6 only.
            self._fixed = LOOPBACK
        else:
            with suppress(socket.gaierror):
                self._fixed = _look_up(self._host, socket.AI_NUMERICHOST)

    async def find(self) -> Sequence[str]:
        """Return the addresses, each once.

        Raises:
            socket.gaierror: If the name has no address.
            OSError: With EAGAIN if no thread can be started.
        """
        if self._fixed:
            return self._fixed
        if self._found is None or self._found.done():
            found: Future[Sequence[str]] = Future()
            found.set_running_or_notify_cancel()  # a cancelled probe does not cancel it
            thread = threading.Thread(target=self._run, args=(found,), daemon=True)
            try:
                thread.start()
            except RuntimeError:
                raise OSError(errno.EAGAIN, "no thread can be started") from None
            self._found = found
        return await asyncio.wrap_future(self._found)

    def _run(self, found: "Future[Sequence[str]]") -> None:
        try:
            found.set_result(_look_up(self._host))
        except Exception as error:
            found.set_exception(error)


def _look_up(host: str, flags: int = 0) -> Sequence[str]:
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=flags)
    return tuple(dict.fromkeys(str(place[0]) for *_, place in found))

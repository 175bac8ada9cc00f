"""Look-ups of host names that block neither the event loop, its executor nor the exit."""

import asyncio
import errno
import socket
import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

AddressInfo = tuple[socket.AddressFamily, socket.SocketKind, int, str, tuple[Any, ...]]


async def look_up(host: str, port: int, *, flags: int = 0) -> Sequence[AddressInfo]:
    """Look up a host name as `socket.getaddrinfo` does, for TCP.

    Each call has a daemon thread: a name server that does not answer can block a thread for
    half a minute, which must delay neither another look-up nor the exit of the process.

    Args:
        host: A name or an IP address.
        port: Part of the result.
        flags: As for `socket.getaddrinfo`.

    Raises:
        socket.gaierror: If the name has no address.
        OSError: With EAGAIN if no thread can be started.
    """
    with suppress(socket.gaierror, UnicodeError):  # an IP address needs no name server
        return _look_up(host, port, flags | socket.AI_NUMERICHOST)
    loop = asyncio.get_running_loop()
    found: asyncio.Future[Sequence[AddressInfo]] = loop.create_future()

    def settle(result: "Sequence[AddressInfo] | Exception") -> None:
        if found.done():  # cancelled
            return
        if isinstance(result, Exception):
            found.set_exception(result)
        else:
            found.set_result(result)

    def run() -> None:
        result: Sequence[AddressInfo] | Exception
        try:
            result = _look_up(host, port, flags)
        except UnicodeError:  # not a name, so it has no address
            result = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        except Exception as error:
            result = error
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(settle, result)

    try:
        threading.Thread(target=run, name="look-up", daemon=True).start()
    except RuntimeError:
        raise OSError(errno.EAGAIN, "no thread can be started") from None
    return await found


def _look_up(host: str, port: int, flags: int) -> list[AddressInfo]:
    return list(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags))

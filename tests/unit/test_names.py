import asyncio
import errno
import socket
import threading
from typing import Any

import pytest

from ghealth.names import look_up


class NameServer:
    """Takes the place of the system's look-up, which waits for its gate."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.asked = threading.Semaphore(0)
        self.threads: list[threading.Thread] = []
        self.result: Any = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("10.0.0.1", 1))]

    def getaddrinfo(self, *_: object, flags: int, **__: object) -> Any:
        if flags & socket.AI_NUMERICHOST:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        self.threads.append(threading.current_thread())
        self.asked.release()
        self.gate.wait()
        if isinstance(self.result, Exception):
            raise self.result
        return self.result


@pytest.fixture
def name_server(monkeypatch: pytest.MonkeyPatch) -> NameServer:
    fake = NameServer()
    monkeypatch.setattr(socket, "getaddrinfo", fake.getaddrinfo)
    return fake


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "0"])
async def test_an_address_needs_no_thread(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    """An IP address in any form is there at once."""
    monkeypatch.setattr(threading, "Thread", None)
    assert await look_up(host, 1)


async def test_a_name_is_looked_up_off_the_loop(name_server: NameServer) -> None:
    """While a name server is slow, the loop continues, and two look-ups run at the same time."""
    looking_up = [asyncio.ensure_future(look_up(host, 1)) for host in ("a", "b")]
    for _ in looking_up:
        await asyncio.to_thread(name_server.asked.acquire)
    assert not any(future.done() for future in looking_up)
    name_server.gate.set()
    assert await asyncio.gather(*looking_up) == [name_server.result] * 2
    assert all(thread.daemon for thread in name_server.threads), "the process's end would wait"


async def test_a_look_up_can_be_cancelled(name_server: NameServer) -> None:
    """Its thread continues, and its late result is ignored."""
    looking_up = asyncio.ensure_future(look_up("a", 1))
    await asyncio.to_thread(name_server.asked.acquire)
    looking_up.cancel()
    with pytest.raises(asyncio.CancelledError):
        await looking_up
    name_server.gate.set()
    name_server.threads[0].join()
    await asyncio.sleep(0)


def test_a_result_after_the_end_of_the_loop_is_dropped(name_server: NameServer) -> None:
    """A name server that answers after the end disturbs nothing."""

    async def leave_early() -> None:
        looking_up = asyncio.ensure_future(look_up("a", 1))
        await asyncio.to_thread(name_server.asked.acquire)
        looking_up.cancel()

    asyncio.run(leave_early())
    name_server.gate.set()
    name_server.threads[0].join()


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (socket.gaierror(socket.EAI_NONAME, "unknown"), socket.gaierror),
        (UnicodeError("label too long"), socket.gaierror),
        (OSError(errno.EMFILE, "Too many open files"), OSError),
    ],
)
async def test_a_failed_look_up_raises(
    name_server: NameServer, error: Exception, expected: type[Exception]
) -> None:
    """A text that cannot be a name has no address either."""
    name_server.result = error
    name_server.gate.set()
    with pytest.raises(expected) as raised:
        await look_up("a", 1)
    assert type(raised.value) is expected


async def test_without_a_thread_a_look_up_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is this process that lacks something, so it is not the name's fault."""

    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(OSError, match="no thread can be started") as raised:
        await look_up("a.invalid", 1)
    assert raised.value.errno == errno.EAGAIN

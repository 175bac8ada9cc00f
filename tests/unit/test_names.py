import asyncio
import errno
import socket
import threading
from collections.abc import Sequence
from typing import Any
from unittest.mock import Mock

import pytest

from ghealth.address import LOOPBACK
from ghealth.names import Addresses

FOUND = ("10.0.0.1",)
UNKNOWN = socket.gaierror(socket.EAI_NONAME, "Name or service not known")


class NameServer:
    """Takes the place of the system's look-up, which waits for its gate."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.threads: list[threading.Thread] = []
        self.fails: Exception | None = None

    def getaddrinfo(self, _: str, port: int, *, flags: int, **__: object) -> Any:
        if flags == socket.AI_NUMERICHOST:
            raise UNKNOWN
        assert flags == 0
        self.threads.append(threading.current_thread())
        self.gate.wait(10)
        if self.fails is not None:
            raise self.fails
        place = (socket.AF_INET, socket.SOCK_STREAM, 6, "", (FOUND[0], port))
        return [place, place]


@pytest.fixture
def name_server(monkeypatch: pytest.MonkeyPatch) -> NameServer:
    fake = NameServer()
    monkeypatch.setattr(socket, "getaddrinfo", fake.getaddrinfo)
    return fake


NUMERIC = [("127.0.0.1", ("127.0.0.1",)), ("::1", ("::1",)), ("0", ("0.0.0.0",))]


@pytest.mark.parametrize(
    ("host", "expected"), [*NUMERIC, ("localhost", LOOPBACK), ("localhost.", LOOPBACK)]
)
async def test_an_address_needs_no_thread(
    monkeypatch: pytest.MonkeyPatch, host: str, expected: Sequence[str]
) -> None:
    """An IP address in any form, and `localhost`, are found at once."""
    monkeypatch.setattr(threading, "Thread", None)
    assert await Addresses(host).find() == expected


async def test_a_name_is_looked_up_off_the_loop_for_each_probe(name_server: NameServer) -> None:
    """While a name server is slow, the loop continues; the next probe looks the name up again."""
    addresses = Addresses("a")
    finding = asyncio.create_task(addresses.find())
    await asyncio.sleep(0)
    assert not finding.done()
    name_server.gate.set()
    assert [await finding, await addresses.find()] == [FOUND, FOUND]
    assert len(name_server.threads) == 2
    assert all(thread.daemon for thread in name_server.threads), "the process's end would wait"


@pytest.mark.parametrize("fails", [None, UNKNOWN])
def test_an_answer_after_the_end_of_the_loop_is_dropped(
    name_server: NameServer, fails: Exception | None, caplog: pytest.LogCaptureFixture
) -> None:
    """A name server that answers after the end, or that fails then, disturbs nothing."""
    name_server.fails = fails

    async def leave_early() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(Addresses("a").find(), 0.001)

    before = threading.enumerate()
    asyncio.run(leave_early())
    (looking_up,) = set(threading.enumerate()) - set(before)
    name_server.gate.set()
    looking_up.join()
    assert caplog.records == []


async def test_without_a_thread_a_look_up_fails(
    monkeypatch: pytest.MonkeyPatch, name_server: NameServer
) -> None:
    """This process lacks something, which is not the name's fault; later it is looked up."""
    addresses = Addresses("a")
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", Mock(side_effect=RuntimeError))
        with pytest.raises(OSError, match=r"\] no thread can be started$") as raised:
            await addresses.find()
    assert raised.value.errno == errno.EAGAIN
    name_server.gate.set()
    assert await addresses.find() == FOUND

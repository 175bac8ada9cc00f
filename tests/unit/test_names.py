import asyncio
import errno
import socket
import threading
from collections.abc import Sequence
from typing import Any

import pytest

from ghealth.names import LOOPBACK, Addresses, AddressInfo, look_up

LIMIT = 10.0
"""Seconds after which a look-up, or the question to the name server, will not come."""

UNKNOWN = socket.gaierror(socket.EAI_NONAME, "Name or service not known")


class NameServer:
    """Takes the place of the system's look-up, which waits for its gate."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.asked = threading.Semaphore(0)
        self.threads: list[threading.Thread] = []
        self.flags: list[int] = []
        self.fails: Exception | None = None

    def getaddrinfo(self, _: str, port: int, *, flags: int, **__: object) -> Any:
        if flags & socket.AI_NUMERICHOST:
            raise UNKNOWN
        self.threads.append(threading.current_thread())
        self.flags.append(flags)
        self.asked.release()
        self.gate.wait(LIMIT)
        if self.fails is not None:
            raise self.fails
        place = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("10.0.0.1", port))
        return [place, place]

    async def question(self) -> None:
        """Wait for one question."""
        assert await asyncio.to_thread(self.asked.acquire, timeout=LIMIT)


@pytest.fixture
def name_server(monkeypatch: pytest.MonkeyPatch) -> NameServer:
    fake = NameServer()
    monkeypatch.setattr(socket, "getaddrinfo", fake.getaddrinfo)
    return fake


async def found(addresses: Addresses) -> Sequence[str]:
    async with asyncio.timeout(LIMIT):
        return await addresses.find()


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", ["127.0.0.1"]),
        ("::1", ["::1"]),
        ("0", ["0.0.0.0"]),
        ("localhost", LOOPBACK),
        ("localhost.", LOOPBACK),
    ],
)
async def test_an_address_needs_no_thread(
    monkeypatch: pytest.MonkeyPatch, host: str, expected: Sequence[str]
) -> None:
    """An IP address in any form, and `localhost`, are found at once."""
    monkeypatch.setattr(threading, "Thread", None)
    assert list(await found(Addresses(host))) == list(expected)


async def test_a_name_is_looked_up_off_the_loop_for_each_probe(name_server: NameServer) -> None:
    """While a name server is slow, the loop continues; the next probe looks the name up again."""
    addresses = Addresses("a")
    finding = asyncio.ensure_future(found(addresses))
    await name_server.question()
    assert not finding.done()
    name_server.gate.set()
    assert await finding == ("10.0.0.1",)
    assert await found(addresses) == ("10.0.0.1",)
    assert len(name_server.threads) == 2
    assert all(thread.daemon for thread in name_server.threads), "the process's end would wait"


async def test_a_cancelled_probe_leaves_its_look_up_to_the_next(name_server: NameServer) -> None:
    """A name server that does not answer blocks one thread, and its late answer is used."""
    addresses = Addresses("a")
    for _ in range(3):
        finding = asyncio.ensure_future(found(addresses))
        await asyncio.sleep(0)
        finding.cancel()
        await asyncio.wait((finding,))
    name_server.gate.set()
    assert await found(addresses) == ("10.0.0.1",)
    assert len(name_server.threads) == 1


@pytest.mark.parametrize("fails", [None, UNKNOWN])
def test_an_answer_after_the_end_of_the_loop_is_dropped(
    name_server: NameServer, fails: Exception | None, caplog: pytest.LogCaptureFixture
) -> None:
    """A name server that answers after the end, or that fails then, disturbs nothing."""
    name_server.fails = fails

    async def leave_early() -> None:
        finding = asyncio.ensure_future(found(Addresses("a")))
        await name_server.question()
        assert not finding.done()

    asyncio.run(leave_early())
    name_server.gate.set()
    name_server.threads[0].join()
    assert caplog.records == []


@pytest.mark.parametrize("error", [UNKNOWN, OSError(errno.EMFILE, "none left")])
async def test_a_failed_look_up_raises(name_server: NameServer, error: Exception) -> None:
    """The failure is that of the system's look-up, for each probe."""
    name_server.fails = error
    name_server.gate.set()
    addresses = Addresses("a")
    for _ in range(2):
        with pytest.raises(type(error)) as raised:
            await found(addresses)
        assert raised.value.args == error.args


async def test_without_a_thread_a_look_up_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process lacks something, which is not the name's fault; later it is looked up."""

    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    addresses = Addresses("a.invalid")
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", start)
        with pytest.raises(OSError, match=r"^\[Errno \d+\] no thread can be started$") as raised:
            await found(addresses)
    assert raised.value.errno == errno.EAGAIN
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [(0, 0, 0, "", ("10.0.0.2", 0))])
    assert await found(addresses) == ("10.0.0.2",)


# ---- look_up, until the callers that listen and that check have their own ------------------------


async def looked_up(host: str, port: int, **flags: int) -> Sequence[AddressInfo]:
    async with asyncio.timeout(LIMIT):
        return await look_up(host, port, **flags)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "0"])
async def test_look_up_an_address_needs_no_thread(
    monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    """An IP address in any form is there at once."""
    monkeypatch.setattr(threading, "Thread", None)
    assert await looked_up(host, 1)


async def test_look_up_the_result_is_a_place_for_tcp() -> None:
    """It has the port, and an address occurs once, as that of a stream."""
    place = (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", ("127.0.0.1", 80))
    assert await looked_up("127.0.0.1", 80) == [place]


@pytest.mark.parametrize("flags", [0, socket.AI_CANONNAME])
async def test_look_up_the_flags_are_the_callers(name_server: NameServer, flags: int) -> None:
    """The look-up by the name server has them and no others."""
    name_server.gate.set()
    await (looked_up("a", 1, flags=flags) if flags else looked_up("a", 1))
    assert name_server.flags == [flags]


async def test_look_up_a_name_is_looked_up_off_the_loop(name_server: NameServer) -> None:
    """While a name server is slow, the loop continues, and two look-ups run at the same time."""
    looking_up = [asyncio.ensure_future(looked_up("a", port)) for port in (1, 2)]
    for _ in looking_up:
        await name_server.question()
    assert not any(future.done() for future in looking_up)
    name_server.gate.set()
    results = await asyncio.gather(*looking_up)
    assert [place for ((*_, place), *_rest) in results] == [("10.0.0.1", 1), ("10.0.0.1", 2)]
    assert all(thread.daemon for thread in name_server.threads), "the process's end would wait"
    assert [thread.name for thread in name_server.threads] == ["look-up"] * 2


async def test_look_up_a_look_up_can_be_cancelled(name_server: NameServer) -> None:
    """Its thread continues, and its late result is ignored."""
    looking_up = asyncio.ensure_future(looked_up("a", 1))
    await name_server.question()
    looking_up.cancel()
    with pytest.raises(asyncio.CancelledError):
        await looking_up
    name_server.gate.set()
    name_server.threads[0].join()
    await asyncio.sleep(0)


def test_look_up_a_result_after_the_end_of_the_loop_is_dropped(name_server: NameServer) -> None:
    """A name server that answers after the end disturbs nothing."""

    async def leave_early() -> None:
        looking_up = asyncio.ensure_future(looked_up("a", 1))
        await name_server.question()
        looking_up.cancel()

    asyncio.run(leave_early())
    name_server.gate.set()
    name_server.threads[0].join()


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (UNKNOWN, UNKNOWN),
        (UnicodeError("label too long"), UNKNOWN),
        (OSError(errno.EMFILE, "none left"), OSError(errno.EMFILE, "none left")),
    ],
)
async def test_look_up_a_failed_look_up_raises(
    name_server: NameServer, error: Exception, expected: Exception
) -> None:
    """A text that cannot be a name fails as a name without an address does."""
    name_server.fails = error
    name_server.gate.set()
    with pytest.raises(type(expected)) as raised:
        await looked_up("a", 1)
    assert (type(raised.value), raised.value.args) == (type(expected), expected.args)


async def test_look_up_without_a_thread_a_look_up_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is this process that lacks something, so it is not the name's fault."""

    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(OSError, match=r"^\[Errno \d+\] no thread can be started$") as raised:
        await looked_up("a.invalid", 1)
    assert raised.value.errno == errno.EAGAIN

import asyncio
import socket
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest

from ghealth import http_port
from ghealth.http_port import MAX_CONNECTIONS, MAX_HEAD, Response, serving

LARGE = b"x" * 10_000_000


async def respond(path: str, accept: str) -> Response | None:
    """Answer as the paths below say."""
    match path:
        case "/":
            return Response("text/x", f"accepts {accept}".encode(), headers={"X-More": "y"})
        case "/large":
            return Response("text/x", LARGE)
        case "/broken":
            raise ZeroDivisionError("a secret")
        case "/hangs":
            await asyncio.Event().wait()
    return None


@asynccontextmanager
async def port() -> AsyncGenerator[int, None]:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        async with serving([bound], respond):
            yield bound.getsockname()[1]


async def exchange(number: int, data: bytes) -> bytes:
    """Send something, and take all that comes back until the other side closes or resets."""
    reader, writer = await asyncio.open_connection("127.0.0.1", number)
    writer.write(data)
    try:
        async with asyncio.timeout(20):
            return await reader.read()
    except ConnectionError:
        return b""
    finally:
        writer.close()


def get(path: str, *headers: str) -> bytes:
    lines = (f"GET {path} HTTP/1.1", "Host: x", *headers)
    return "".join(f"{line}\r\n" for line in (*lines, "")).encode()


async def test_a_get_is_answered_and_the_connection_closed() -> None:
    """One request a connection; the query is left out, the headers are those of the response."""
    async with port() as number:
        said = await exchange(number, get("/?a=b", "Accept: one", "accept: two"))
    head, _, body = said.partition(b"\r\n\r\n")
    assert body == b"accepts one,two"
    status, *headers = head.decode().split("\r\n")
    assert status == "HTTP/1.1 200 OK"
    assert headers == [
        "Content-Type: text/x",
        "Content-Length: 15",
        "Connection: close",
        "Cache-Control: no-store",
        "X-Content-Type-Options: nosniff",
        "X-More: y",
    ]


async def test_a_large_answer_arrives_whole() -> None:
    """More than any buffer on the way takes is written bit by bit."""
    async with port() as number:
        said = await exchange(number, get("/large"))
    assert said.endswith(b"\r\n\r\n" + LARGE)


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (get("/none"), 404),
        (get("/").replace(b"GET", b"POST"), 405),
        (get("/").replace(b"GET", b"HEAD"), 405),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 405),
        (get("/", "Content-Length: 5") + b"hello", 200),
        (get("/", "Transfer-Encoding: chunked") + b"zz", 200),
        (b"GET / HTTP/1.0\r\n\r\n", 200),
        (get("/").replace(b"Host: x\r\n", b""), 400),
        (b"\x16\x03\x01\0\xa5" * 100, 400),
        (b"\r\n" * 100, 400),
        (get("/\xff"), 400),
        (get("/", "X: " + "y" * 3 * MAX_HEAD), 431),
        (get("/" + "y" * 3 * MAX_HEAD), 431),
        (get("/", "X: " + "y" * 1_000_000), 431),
        (b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * MAX_HEAD, 431),
    ],
)
async def test_what_is_no_small_get_is_refused(request_: bytes, status: int) -> None:
    """Each gets one answer, that is not lost for what the client sent beyond it."""
    async with port() as number:
        said = await exchange(number, request_)
    assert said.startswith(b"HTTP/1.1 %d " % status)
    assert said.count(b"HTTP/1.1") == 1
    if status == 405:
        assert b"\r\nAllow: GET\r\n" in said
        assert said.endswith(b"\r\n\r\n")


async def test_who_hangs_up_is_told_nothing() -> None:
    """A connection that ends before its request is closed."""
    async with port() as number:
        for data in (b"", b"GET / HT"):
            reader, writer = await asyncio.open_connection("127.0.0.1", number)
            writer.write(data)
            writer.write_eof()
            assert b"HTTP/1.1 200" not in await reader.read()
            writer.close()


async def test_a_bug_is_a_500_without_its_text(caplog: pytest.LogCaptureFixture) -> None:
    """What answering raises is logged, and the client learns nothing of it."""
    async with port() as number:
        said = await exchange(number, get("/broken"))
    assert said.startswith(b"HTTP/1.1 500 ")
    assert b"secret" not in said
    assert [record.getMessage() for record in caplog.records] == ["answering HTTP failed"]


@pytest.mark.parametrize("data", [b"", b"GET / HTTP/1.1\r\nHost", get("/hangs")])
async def test_a_connection_has_bounded_time(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    """Who is silent, slow, or asks for what takes too long is let go."""
    monkeypatch.setattr(http_port, "PATIENCE", 0.2)
    async with port() as number:
        started = time.monotonic()
        assert await exchange(number, data) == b""
        assert time.monotonic() - started < 5


async def test_connections_are_bounded_in_number() -> None:
    """Silent ones have their places, and one more is closed at once; a freed place is free."""
    async with port() as number:
        silent = [
            await asyncio.open_connection("127.0.0.1", number) for _ in range(MAX_CONNECTIONS)
        ]
        assert await exchange(number, get("/")) == b""
        silent[0][1].close()
        said = b""
        while not said.startswith(b"HTTP/1.1 200"):
            said = await exchange(number, get("/"))
        for _, writer in silent:
            writer.close()


async def test_the_end_cuts_what_is_open() -> None:
    """Neither a request under way nor a silent connection holds it up."""
    async with port() as number:
        hanging = [asyncio.create_task(exchange(number, d)) for d in (get("/hangs"), b"")]
        for _ in range(5):
            await exchange(number, get("/"))
        started = time.monotonic()
    assert time.monotonic() - started < 1
    assert await asyncio.gather(*hanging) == [b"", b""]
    with pytest.raises(ConnectionRefusedError):
        await exchange(number, get("/"))

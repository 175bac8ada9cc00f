import asyncio
import re
import socket
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from email.utils import parsedate_to_datetime

import pytest

from ghealth.admin import http
from ghealth.admin.http import MAX_CONNECTIONS, MAX_HEAD, Headers, Respond, Response, line, serving

LARGE = b"x" * 10_000_000


async def respond(path: str, query: str, headers: Headers) -> Response | None:
    """Answer by the path."""
    match path:
        case "/":
            text = f"accepts {headers.get('accept', '')}, query {query}"
            return Response("text/x", text.encode(), headers={"X-More": "y"})
        case "/large":
            return Response("text/x", LARGE)
        case "/broken":
            raise ZeroDivisionError("a secret")
        case "/hangs":
            await asyncio.Event().wait()
    return None


@asynccontextmanager
async def serving_by(respond: Respond) -> AsyncGenerator[int, None]:
    """Serve on a free port."""
    with socket.create_server(("127.0.0.1", 0)) as bound:
        async with serving([bound], respond):
            yield bound.getsockname()[1]


@pytest.fixture
async def port() -> AsyncGenerator[int, None]:
    async with serving_by(respond) as number:
        yield number


async def exchange(port: int, data: bytes) -> bytes:
    """Send something, and return all that comes back until the server closes or resets."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    try:
        async with asyncio.timeout(20):
            return await reader.read()
    except ConnectionError:
        return b""
    finally:
        writer.close()


def get(path: str, *headers: str, host: str = "localhost") -> bytes:
    """Make a GET request."""
    lines = (f"GET {path} HTTP/1.1", f"Host: {host}", *headers)
    return "".join(f"{line}\r\n" for line in (*lines, "")).encode()


async def test_a_get_is_answered_and_the_connection_closed(port: int) -> None:
    """One request per connection; a repeated header's values are joined."""
    answer = await exchange(port, get("/?a=b", "Accept: one", "accept: two"))
    head, _, body = answer.partition(b"\r\n\r\n")
    assert body == b"accepts one,two, query a=b"
    status, date, *headers = head.decode().split("\r\n")
    assert status == "HTTP/1.1 200 OK"
    sent = parsedate_to_datetime(date.removeprefix("Date: "))
    assert abs(sent.timestamp() - time.time()) < 60
    assert headers == [
        "Content-Type: text/x",
        "Content-Length: 26",
        "Connection: close",
        "Cache-Control: no-store",
        "X-Content-Type-Options: nosniff",
        "X-More: y",
    ]


@pytest.mark.parametrize("path", ["/", "/none"])
async def test_head_is_get_without_the_body(port: int, path: str) -> None:
    """Status and headers, the body's length among them, are those of GET (RFC 9110, 9.3.2)."""
    requests = (get(path), get(path).replace(b"GET", b"HEAD"))
    answers = [await exchange(port, request) for request in requests]
    of_get, of_head = (re.sub(rb"Date: .*?\r\n", b"", answer) for answer in answers)
    head, separator, body = of_get.partition(b"\r\n\r\n")
    assert body
    assert of_head == head + separator


ABSOLUTE = "http://LocalHost:8080"


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (get("/none"), 404),
        (get("/").replace(b"GET", b"POST"), 405),
        (get("localhost:80").replace(b"GET", b"CONNECT"), 405),
        (get("/", "Content-Length: 5") + b"hello", 200),
        (get("/", "Transfer-Encoding: chunked") + b"zz", 200),
        (b"GET / HTTP/1.0\r\n\r\n", 200),
        (get("/%6Carge"), 200),  # `%2F` would be a slash too (RFC 3986, 6.2.2.2)
        (get(f"{ABSOLUTE}/"), 200),
        (get(f"{ABSOLUTE}/", host="elsewhere.example"), 200),
        (get(ABSOLUTE), 200),
        (get(f"{ABSOLUTE}?a=b"), 200),
        (get(f"{ABSOLUTE.upper()}/none"), 404),
        (get("https://localhost/"), 421),
        (get("http:///livez"), 400),
        (get("http://user@localhost/"), 400),
        (get(f"{ABSOLUTE}/", host="a b"), 400),
        (get("/#x"), 400),
        (get("%2F"), 400),
        (get("/").replace(b"Host: localhost\r\n", b""), 400),
        (get("/", host="localhost:80a"), 400),
        (b"\x16\x03\x01\0\xa5" * 100, 400),
        (get("/" + "y" * 3 * MAX_HEAD), 431),
        (get("/", "X: " + "y" * 1_000_000), 431),
        (b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * MAX_HEAD, 431),
    ],
)
async def test_each_request_has_one_answer(port: int, request_: bytes, status: int) -> None:
    """RFC 9110 and 9112 decide which, and nothing that the client sent beyond it loses it."""
    answer = await exchange(port, request_)
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert answer.count(b"HTTP/1.1") == 1
    assert (b"\r\nAllow: GET, HEAD\r\n" in answer) == (status == 405)


LOCAL = ["localhost", "LOCALHOST:9000", "127.0.0.1", "[::1]:25022", "[::1]"]


@pytest.mark.parametrize("host", [*LOCAL, "rebound.example", "127.0.0.2", "[::2]", ""])
async def test_a_loopback_address_serves_only_local_hosts(port: int, host: str) -> None:
    """A website's name that was rebound to 127.0.0.1 is refused, in absolute form too."""
    status = b"HTTP/1.1 200 " if host in LOCAL else b"HTTP/1.1 421 "
    assert (await exchange(port, get("/", host=host))).startswith(status)
    if host:
        assert (await exchange(port, get(f"http://{host}/"))).startswith(status)


@pytest.mark.parametrize("host", ["10.1.2.3:25022", "any.example", ""])
async def test_another_address_serves_every_host(
    port: int, host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a pod, Prometheus asks for its IP address, and others for any name."""
    monkeypatch.setattr(http, "_is_loopback", lambda _: False)
    assert (await exchange(port, get("/", host=host))).startswith(b"HTTP/1.1 200 ")


LOOPBACK = ["127.0.0.1", "::1", "::ffff:127.0.0.1"]


@pytest.mark.parametrize("address", [*LOOPBACK, "10.0.0.1", "::ffff:10.0.0.1", "fe80::1%eth0"])
def test_loopback_addresses(address: str) -> None:
    """IPv4 addresses on an IPv6 socket are judged as what they are."""
    assert http._is_loopback(address) is (address in LOOPBACK)


@pytest.mark.parametrize("data", [b"", b"GET / HT"])
async def test_a_connection_that_ends_early_has_no_answer(port: int, data: bytes) -> None:
    """A client that closes before its request is complete gets no 200."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    writer.write_eof()
    assert b"HTTP/1.1 200" not in await reader.read()
    writer.close()


async def test_a_bug_is_a_500_without_its_text(port: int, caplog: pytest.LogCaptureFixture) -> None:
    """An exception is logged, and the client sees nothing of it."""
    answer = await exchange(port, get("/broken"))
    assert answer.startswith(b"HTTP/1.1 500 ")
    assert b"secret" not in answer
    assert caplog.messages == ["answering HTTP failed"]


@pytest.mark.parametrize(
    ("data", "limit"),
    [
        (b"", "HEAD_TIMEOUT"),
        (b"GET / HTTP/1.1\r\nHost", "HEAD_TIMEOUT"),
        (get("/hangs"), "ANSWER_TIMEOUT"),
    ],
)
async def test_a_connection_has_bounded_time(
    port: int, data: bytes, limit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A silent or slow client, or an answer that takes too long, ends with the connection."""
    monkeypatch.setattr(http, limit, 0.2)
    assert await exchange(port, data) == b""


async def test_a_client_that_reads_nothing_has_bounded_time(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It cannot hold a large answer in memory for longer than an answer may take."""
    monkeypatch.setattr(http, "ANSWER_TIMEOUT", 0.2)
    others = asyncio.all_tasks()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(get("/large"))
    await exchange(port, get("/"))  # the connection before it is accepted, too
    await asyncio.wait(asyncio.all_tasks() - others)
    received = len(await reader.read())
    writer.close()
    assert 0 < received < len(LARGE)


@pytest.mark.parametrize(
    "data", [b"", b"GET / HTTP/1.1\r\n", get("/"), get("/large")], ids=["", "part", "done", "deaf"]
)
async def test_connections_cannot_keep_others_from_an_answer(port: int, data: bytes) -> None:
    """At the limit the oldest makes room: silent, slow, not closed, or not read."""
    old = [await asyncio.open_connection("127.0.0.1", port) for _ in range(MAX_CONNECTIONS)]
    for _, writer in old:
        writer.write(data)
    for _ in range(5):
        assert (await exchange(port, get("/"))).startswith(b"HTTP/1.1 200 ")
    for _, writer in old:
        writer.transport.abort()


@pytest.mark.parametrize("path", ["", "/none", "/hangs"], ids=["silent", "answered", "waiting"])
async def test_a_request_that_waits_for_its_answer_is_closed_last(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Room is made by connections that wait for no answer first, then by the oldest request."""
    monkeypatch.setattr(http, "MAX_CONNECTIONS", 2)
    arrived, finish = asyncio.Semaphore(0), asyncio.Event()

    async def hang(path: str, _query: str, _headers: Headers) -> None:
        if path == "/hangs":
            arrived.release()
            await finish.wait()

    async with serving_by(hang) as port:
        oldest = asyncio.create_task(exchange(port, get("/hangs")))
        await arrived.acquire()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        if path:
            writer.write(get(path))
            await (arrived.acquire() if path == "/hangs" else reader.readline())
        newest = asyncio.create_task(exchange(port, get("/hangs")))
        await arrived.acquire()
        finish.set()
        assert (await newest).startswith(b"HTTP/1.1 404 ")
        assert (await oldest == b"") is (path == "/hangs")
        writer.close()


async def test_the_end_closes_what_is_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a request under way nor a silent connection delays it."""
    monkeypatch.setattr(http, "HEAD_TIMEOUT", 1000)
    monkeypatch.setattr(http, "ANSWER_TIMEOUT", 1000)
    async with serving_by(respond) as port:
        hanging = [asyncio.create_task(exchange(port, data)) for data in (get("/hangs"), b"")]
        for _ in range(5):
            await exchange(port, get("/"))
    assert await asyncio.gather(*hanging) == [b"", b""]
    with pytest.raises(ConnectionRefusedError):
        await exchange(port, get("/"))


def test_a_line_is_one_line() -> None:
    """A text with line breaks cannot become several lines, nor one that is not UTF-8 a bug."""
    assert line("a\r\n b\udcff\n").body == b"a b\\udcff\n"

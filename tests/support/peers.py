"""Targets on real sockets that misbehave in every way."""

import asyncio
import itertools
import socket
import ssl
import struct
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress

Behaviour = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Target:
    """A listener and the requests that it received.

    Args:
        behaviour: Handles a connection when the request's headers have arrived.
        reads: Whether it waits for the headers.
    """

    def __init__(self, behaviour: Behaviour, *, reads: bool = True) -> None:
        self._behaviour = behaviour
        self._reads = reads
        self.port = 0
        self.requests: list[bytes] = []
        self.talks: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        """Its URL, without TLS and on 127.0.0.1."""
        return f"http://127.0.0.1:{self.port}/"

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection."""
        talk = asyncio.create_task(self._talk(reader, writer))
        self.talks.add(talk)
        talk.add_done_callback(self.talks.discard)
        talk.add_done_callback(lambda _: writer.close())

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if self._reads:
                self.requests.append(await reader.readuntil(b"\r\n\r\n"))
            await self._behaviour(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass


@asynccontextmanager
async def target(
    behaviour: Behaviour,
    *,
    host: str = "127.0.0.1",
    tls: ssl.SSLContext | None = None,
    reads: bool = True,
) -> AsyncGenerator[Target, None]:
    """Run a target on a free port.

    Args:
        behaviour: Handles a connection.
        host: The only address that it listens on.
        tls: Its certificate, for https.
        reads: Whether it waits for the request's headers first.
    """
    made = Target(behaviour, reads=reads)
    with ExitStack() as stack:
        # Tests run in parallel: another one could listen on the same port of the other loopback.
        port = stack.enter_context(nobody("127.0.0.1")) if host == "::1" else 0
        server = await asyncio.start_server(made.accept, host, port, ssl=tls)
        made.port = server.sockets[0].getsockname()[1]
        try:
            yield made
        finally:
            server.close()
            for talk in made.talks:
                talk.cancel()
            await asyncio.gather(*made.talks, return_exceptions=True)


@contextmanager
def nobody(host: str = "::") -> Iterator[int]:
    """Reserve a port on which nothing listens, by default on all addresses of both families.

    Args:
        host: The address.
    """
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as held:
        held.bind((host, 0))
        port: int = held.getsockname()[1]
        yield port


def says(data: bytes) -> Behaviour:
    """Send data and close."""

    async def behave(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        await writer.drain()

    return behave


def answers(code: int, headers: bytes = b"") -> Behaviour:
    """Answer with a status code and no body."""
    return says(b"HTTP/1.1 %d X\r\ncontent-length: 0\r\n%s\r\n" % (code, headers))


def repeats(data: bytes, *, first: bytes = b"", every: float = 0.0) -> Behaviour:
    """Send data again and again until the peer disconnects."""

    async def behave(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(first)
        for _number in itertools.count():
            writer.write(data)
            await writer.drain()
            await asyncio.sleep(every)

    return behave


async def is_silent(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
    """Send nothing until the peer disconnects."""
    await hung_up(reader)


async def hung_up(reader: asyncio.StreamReader) -> None:
    """Wait until the peer has closed its connection, or reset it."""
    with suppress(ConnectionError):
        while await reader.read(1024):
            pass


async def resets(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer with a RST."""
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

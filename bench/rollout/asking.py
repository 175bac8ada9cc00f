"""HTTP/1.1 requests of the kubelet and the bridges: one request per connection."""

import asyncio
import contextlib

from bench.rollout.numbers import READINESS


async def http_status(host: str, port: int, path: str, method: str = "GET") -> int:
    """Return the status code of an answer.

    Raises:
        OSError: If there is no connection, or no answer.
        ValueError: If the answer is not HTTP.
    """
    reader, writer = await asyncio.open_connection(host, port)
    with contextlib.closing(writer):
        request = f"{method} {path} HTTP/1.1\r\nhost: {host}\r\ncontent-length: 0\r\n\r\n"
        writer.write(request.encode())
        words = (await reader.readline()).split()
    if not words:
        raise ConnectionResetError
    return int(words[1])


async def readiness(host: str) -> int:
    """Return the status code of a gateway's readiness listener; it raises the same."""
    return await http_status(host, READINESS, "/healthz/ready")


async def is_ready(host: str, seconds: float) -> bool:
    """Probe a gateway as the kubelet does: ready is 200 to 399 within the timeout."""
    with contextlib.suppress(OSError, ValueError, TimeoutError):
        async with asyncio.timeout(seconds):
            return 200 <= await readiness(host) < 400
    return False

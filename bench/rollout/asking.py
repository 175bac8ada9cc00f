"""HTTP/1.1 requests of the kubelet and the bridges: one request per connection."""

import asyncio
import contextlib


async def http_status(host: str, port: int, path: str, method: str = "GET") -> int:
    """Return the status code of an answer.

    Args:
        host: The peer's address.
        port: Its port.
        path: The path.
        method: The method.

    Raises:
        OSError: If there is no connection, or no answer.
        ValueError: If the answer is not HTTP.
    """
    reader, writer = await asyncio.open_connection(host, port)
    try:
        request = f"{method} {path} HTTP/1.1\r\nhost: {host}\r\ncontent-length: 0\r\n\r\n"
        writer.write(request.encode())
        words = (await reader.readline()).split()
        if not words:
            raise ConnectionResetError
        return int(words[1])
    finally:
        writer.close()


async def is_ready(host: str, port: int, seconds: float) -> bool:
    """Probe a gateway as the kubelet does: ready is 200 to 399 within the timeout."""
    with contextlib.suppress(OSError, ValueError, TimeoutError):
        async with asyncio.timeout(seconds):
            return 200 <= await http_status(host, port, "/healthz/ready") < 400
    return False

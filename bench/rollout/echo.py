"""The service behind the gateways: answers after the seconds in the request.

python -m bench.rollout.echo PORT
"""

import asyncio
import sys
from collections.abc import AsyncIterator
from typing import Any, Final

import grpc

WAIT, STREAM = "/echo.Echo/Wait", "/echo.Echo/Stream"
MESSAGES_A_SECOND: Final = 2


async def wait(request: bytes, _: Any) -> bytes:
    """Answer once, after the seconds in the request."""
    await asyncio.sleep(float(request))
    return request


async def stream(request: bytes, _: Any) -> AsyncIterator[bytes]:
    """Answer again and again, for the seconds in the request."""
    for _turn in range(int(float(request) * MESSAGES_A_SECOND)):
        await asyncio.sleep(1 / MESSAGES_A_SECOND)
        yield request


async def main(port: int) -> None:
    """Serve until killed."""
    server = grpc.aio.server()
    handlers: dict[str, Any] = {
        "Wait": grpc.unary_unary_rpc_method_handler(wait),
        "Stream": grpc.unary_stream_rpc_method_handler(stream),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("echo.Echo", handlers),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))

"""What ghealth adds to the floor, layer by layer: `layers.py ADDRESS LAYER`.

The layers: `stream` is registered for a stream of messages and reads one, `task` reads it in a task
with a timeout, as ghealth does, and `options` has ghealth's gRPC options as well.
"""

import asyncio
import sys
from typing import Any, Final

import grpc

_SERVING: Final = b"\x08\x01"
_MESSAGE_TIMEOUT: Final = 1.0

Context = grpc.aio.ServicerContext[bytes, bytes]


async def stream(_requests: object, context: Context) -> bytes:
    """Read the message, and answer a constant."""
    await context.read()
    return _SERVING


async def task(_requests: object, context: Context) -> bytes:
    """Read the message in a task, and answer a constant."""
    reading = asyncio.ensure_future(context.read())
    await asyncio.wait((reading,), timeout=_MESSAGE_TIMEOUT)
    return _SERVING


async def main(address: str, layer: str) -> None:
    """Serve until killed."""
    options: tuple[tuple[str, Any], ...] = ()
    if layer == "options":
        from ghealth.server.limits import OPTIONS  # noqa: PLC0415 - others are without ghealth

        options = OPTIONS
    server = grpc.aio.server(options=options)
    handler = stream if layer == "stream" else task
    methods: dict[str, Any] = {"Check": grpc.stream_unary_rpc_method_handler(handler)}
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("grpc.health.v1.Health", methods),)
    )
    server.add_insecure_port(address)
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))

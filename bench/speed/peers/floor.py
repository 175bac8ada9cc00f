"""The floor: a grpc.aio server that always answers SERVING."""

import asyncio
import sys
from typing import Any, Final

import grpc

_SERVING: Final = b"\x08\x01"


async def check(_request: bytes, _context: "grpc.aio.ServicerContext[bytes, bytes]") -> bytes:
    """Answer a constant."""
    return _SERVING


async def main() -> None:
    """Serve until killed."""
    server = grpc.aio.server()
    methods: dict[str, Any] = {"Check": grpc.unary_unary_rpc_method_handler(check)}
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("grpc.health.v1.Health", methods),)
    )
    server.add_insecure_port(sys.argv[1])
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(main())

"""Alternatives to ghealth beside a gateway, as small as they usually are.

python -m bench.rollout.bridges pass-through HOST PORT READINESS_PORT
"""

import asyncio
import sys
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from bench.rollout.asking import http_status, is_ready
from bench.rollout.numbers import PROBE_TIMEOUT, SCALE

PASS_THROUGH, STOCK = "pass-through", "stock"


class PassThrough(health_pb2_grpc.HealthServicer):  # type: ignore[misc] # no types
    """Answers SERVING after any answer of the gateway, without a timeout.

    Args:
        host: The gateway's address.
        port: Its readiness port.
    """

    def __init__(self, host: str, port: int) -> None:
        self._gateway = (host, port)

    async def Check(self, request: Any, context: Any) -> Any:  # noqa: ARG002, N802
        """Forward the check as an HTTP request."""
        try:
            await http_status(*self._gateway, "/healthz/ready")
        except (OSError, ValueError):
            await context.abort(grpc.StatusCode.UNAVAILABLE, "gateway unreachable")
        return health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING)


async def keep_stock(servicer: Any, host: str, port: int) -> None:
    """Set a stock server's status once a second: it is correct, but only in the message."""
    while True:
        ready = await is_ready(host, port, PROBE_TIMEOUT / SCALE)
        status = health_pb2.HealthCheckResponse
        await servicer.set("", status.SERVING if ready else status.NOT_SERVING)
        await asyncio.sleep(1 / SCALE)


async def main(kind: str, host: str, port: int, readiness_port: int) -> None:
    """Serve until killed."""
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    stock = health.aio.HealthServicer()
    servicer = stock if kind == STOCK else PassThrough(host, readiness_port)
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    server.add_insecure_port(f"{host}:{port}")
    await server.start()
    if kind == STOCK:
        await keep_stock(stock, host, readiness_port)
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))

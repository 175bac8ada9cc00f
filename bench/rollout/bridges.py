"""Alternatives to ghealth beside a gateway, as small as they usually are.

python -m bench.rollout.bridges pass-through HOST PORT
"""

import asyncio
import sys
from http.client import HTTPException
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2_grpc
from grpc_health.v1.health_pb2 import HealthCheckResponse

from bench.rollout.asking import http_status, is_ready
from bench.rollout.numbers import PROBE_TIMEOUT, READINESS, SCALE

PASS_THROUGH, STOCK = "pass-through", "stock"


class PassThrough(health.aio.HealthServicer):  # type: ignore[misc] # no types
    """Answers SERVING after any answer of the gateway, without a timeout.

    Args:
        host: The gateway's address.
    """

    def __init__(self, host: str) -> None:
        super().__init__()
        self._host = host

    async def Check(self, request: Any, context: Any) -> Any:  # noqa: ARG002, N802
        """Forward the check as an HTTP request."""
        try:
            await asyncio.to_thread(http_status, self._host, READINESS, "/healthz/ready")
        except (OSError, HTTPException):
            await context.abort(grpc.StatusCode.UNAVAILABLE, "gateway unreachable")
        return HealthCheckResponse(status=HealthCheckResponse.SERVING)


async def main(kind: str, host: str, port: str) -> None:
    """Serve until killed."""
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    servicer = health.aio.HealthServicer() if kind == STOCK else PassThrough(host)
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    server.add_insecure_port(f"{host}:{port}")
    await server.start()
    while True:
        # Of the stock server, once a second: the status is correct, but only in the message.
        ready = kind == STOCK and await asyncio.to_thread(is_ready, host, PROBE_TIMEOUT / SCALE)
        status = HealthCheckResponse.SERVING if ready else HealthCheckResponse.NOT_SERVING
        await servicer.set("", status)
        await asyncio.sleep(1 / SCALE)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))

"""A bridge that answers SERVING after any answer of the gateway, without a timeout.

python -m bench.rollout.pass_through ADDRESS URL
"""

import asyncio
import sys
from typing import Any, Final

import grpc
import httpx
from grpc_health.v1 import health, health_pb2_grpc
from grpc_health.v1.health_pb2 import HealthCheckResponse

FRESH: Final = httpx.Limits(max_keepalive_connections=0)
"""A new connection for each request."""


class PassThrough(health.aio.HealthServicer):  # type: ignore[misc] # no types
    """Forwards each check as an HTTP request.

    Args:
        url: The gateway's readiness endpoint.
    """

    def __init__(self, url: str) -> None:
        super().__init__()
        self._url = url
        self._client = httpx.AsyncClient(trust_env=False, timeout=None, limits=FRESH)  # noqa: S113

    async def Check(self, request: Any, context: Any) -> Any:  # noqa: ARG002, N802
        """Forward the check."""
        try:
            await self._client.get(self._url)
        except httpx.HTTPError:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "gateway unreachable")
        return HealthCheckResponse(status=HealthCheckResponse.SERVING)


async def main(address: str, url: str) -> None:
    """Serve until killed."""
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    health_pb2_grpc.add_HealthServicer_to_server(PassThrough(url), server)
    server.add_insecure_port(address)
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))

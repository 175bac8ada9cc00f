"""The contenders: what each runs beside the gateway, and the check of its target group."""

import asyncio
import ssl
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import httpx

from bench.rollout.numbers import READINESS, SCALE, TIMEOUT, TRAFFIC
from ghealth.check import alb
from ghealth.check.addresses import Server
from ghealth.check.report import ExitCode
from ghealth.matcher import GRPC_CODES, Matcher

GHEALTH, PASS_THROUGH, STOCK, HTTP, TWIN = "ghealth", "pass-through", "stock", "http", "twin"
BRIDGES: Final = {GHEALTH: 16021, PASS_THROUGH: 16022, STOCK: 16023}
"""The sidecars, and the port of each."""

NO_TLS: Final = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""Spares each client the reading of the system's certificates."""

Check = Callable[[str], bool]
"""Makes one health check of a pod, and blocks at most until the target group's timeout."""


class Contender(NamedTuple):
    """A target group and the sidecar that it needs.

    Args:
        name: In results.
        title: In tables.
        bridge: The sidecar without which the pod is not ready; None needs none.
        check: The health check of its target group.
    """

    name: str
    title: str
    bridge: str | None
    check: Check

    async def passes(self, host: str) -> bool:
        """Make the health check of a pod."""
        return await asyncio.to_thread(self.check, host)


def grpc_check(port: int, **settings: Any) -> Check:
    """Create the check of a gRPC target group, as captured from an ALB; with deploy/'s settings."""
    group = alb.TargetGroup(timeout=TIMEOUT / SCALE, **settings)

    def check(host: str) -> bool:
        return alb.check(Server.parse(f"{host}:{port}"), group).exit_code is ExitCode.SERVING

    return check


def http_status(host: str, timeout: float, *, http2: bool = False) -> int:
    """Ask a gateway on a separate connection; return the status code, 0 without an answer."""
    try:
        with httpx.Client(
            http1=not http2, http2=http2, timeout=timeout, trust_env=False, verify=NO_TLS
        ) as client:
            return client.get(f"http://{host}:{READINESS}/healthz/ready").status_code
    except httpx.HTTPError:
        return 0


def http_check(host: str) -> bool:
    """Check as an HTTP2 target group does (kubernetes-sigs/aws-load-balancer-controller#2694)."""
    return http_status(host, TIMEOUT / SCALE, http2=True) == 200


def beside(kind: str, title: str) -> Contender:
    """Create the contender with a bridge, which gets its recommended check."""
    return Contender(kind, title, kind, grpc_check(BRIDGES[kind]))


CONTENDERS: Final = (
    beside(GHEALTH, "ghealth"),
    Contender(HTTP, "HTTP check on 15021", None, http_check),
    beside(PASS_THROUGH, "pass-through bridge"),
    beside(STOCK, "OK + NOT_SERVING"),
    Contender(
        "default",
        "default path, matcher 12",
        None,
        grpc_check(TRAFFIC, path="/AWS.ALB/healthcheck", matcher=Matcher.parse("12", GRPC_CODES)),
    ),
    Contender(TWIN, "HTTP check, ghealth's pods", GHEALTH, http_check),
)

"""The contenders: what each runs beside the gateway, and the check of its target group."""

import asyncio
from collections.abc import Callable
from contextlib import closing
from typing import Any, Final, NamedTuple

from bench.rollout.numbers import READINESS, SCALE, TIMEOUT, TRAFFIC
from ghealth.check import alb, http2
from ghealth.check.addresses import Server
from ghealth.check.report import ExitCode
from ghealth.matcher import GRPC_CODES, Matcher

GHEALTH, PASS_THROUGH, STOCK, HTTP, TWIN = "ghealth", "pass-through", "stock", "http", "twin"
BRIDGES: Final = {GHEALTH: 16021, PASS_THROUGH: 16022, STOCK: 16023}
"""The sidecars, and the port of each."""

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


def http_check(host: str) -> bool:
    """Check as an HTTP2 target group does (kubernetes-sigs/aws-load-balancer-controller#2694)."""
    headers = [
        (":method", "GET"),
        (":scheme", "http"),
        (":path", "/healthz/ready"),
        (":authority", host),
        ("content-length", "0"),
        ("user-agent", alb.USER_AGENT),
    ]
    server, deadline = Server.parse(f"{host}:{READINESS}"), http2.Deadline(TIMEOUT / SCALE)
    try:
        with closing(http2.connect(server, deadline)) as connection:
            list(connection.exchange(headers, b""))
            return connection.headers.get(":status") == "200"
    except (http2.Http2Error, TimeoutError):
        return False


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

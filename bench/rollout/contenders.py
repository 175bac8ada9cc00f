"""The contenders: what each runs beside the gateway, and the check of its target group."""

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

from bench.rollout import bridges
from bench.rollout.numbers import GRPC_MATCHER, GRPC_PATH, SCALE, TIMEOUT
from bench.rollout.upstream import open_connection
from ghealth.check import alb
from ghealth.check.addresses import Server
from ghealth.check.report import ExitCode
from ghealth.matcher import GRPC_CODES, Matcher

_THREADS: Final = ThreadPoolExecutor(128)
"""More than there are checks at once: the checks of a hanging pod wait."""

GHEALTH: Final = "ghealth"
BRIDGES: Final = (GHEALTH, bridges.PASS_THROUGH, bridges.STOCK)


@dataclass(frozen=True, slots=True)
class Ports:
    """The ports of a pod, the same in every pod of a run; each pod has its own address.

    Args:
        traffic: Calls.
        readiness: Port 15021 in a cluster.
        envoy_admin: Port 15000 in a cluster.
        bridges: Port 25021 in a cluster, for each bridge.
    """

    traffic: int
    readiness: int
    envoy_admin: int
    bridges: dict[str, int]


Check = Callable[[str, Ports], Awaitable[bool]]


@dataclass(frozen=True, slots=True)
class Contender:
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


def grpc_check(port: Callable[[Ports], int], path: str, matcher: str) -> Check:
    """Create the check of a gRPC target group, as captured from an ALB."""
    group = alb.TargetGroup(
        path=path, matcher=Matcher.parse(matcher, GRPC_CODES), timeout=TIMEOUT / SCALE
    )

    async def check(host: str, ports: Ports) -> bool:
        server = Server.parse(f"{host}:{port(ports)}")
        loop = asyncio.get_running_loop()
        report = await loop.run_in_executor(_THREADS, alb.check, server, group)
        return report.exit_code is ExitCode.SERVING

    return check


async def http_check(host: str, ports: Ports) -> bool:
    """Check as an HTTP2 target group does (kubernetes-sigs/aws-load-balancer-controller#2694)."""
    try:
        connection = await open_connection(host, ports.readiness)
    except OSError:
        return False
    try:
        answer = await connection.request(
            [
                (":method", "GET"),
                (":scheme", "http"),
                (":path", "/healthz/ready"),
                (":authority", host),
                ("user-agent", alb.USER_AGENT),
            ]
        )
    except ConnectionError:
        return False
    finally:
        connection.close()
    return answer[":status"] == "200"


def beside(bridge: str) -> Check:
    """Create the recommended check of a bridge."""
    return grpc_check(lambda ports: ports.bridges[bridge], GRPC_PATH, GRPC_MATCHER)


HTTP, TWIN = "http", "twin"

CONTENDERS: Final = (
    Contender(GHEALTH, "ghealth", GHEALTH, beside(GHEALTH)),
    Contender(HTTP, "HTTP check on 15021", None, http_check),
    Contender(
        bridges.PASS_THROUGH,
        "pass-through bridge",
        bridges.PASS_THROUGH,
        beside(bridges.PASS_THROUGH),
    ),
    Contender(bridges.STOCK, "OK + NOT_SERVING", bridges.STOCK, beside(bridges.STOCK)),
    Contender(
        "default",
        "default path, matcher 12",
        None,
        grpc_check(lambda ports: ports.traffic, "/AWS.ALB/healthcheck", "12"),
    ),
    Contender(TWIN, "HTTP check, ghealth's pods", GHEALTH, http_check),
)

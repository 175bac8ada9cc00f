"""Every caller, and what it should conclude. To add one, add a row here."""

from dataclasses import dataclass
from functools import partial
from typing import Final, Generic, TypeVar

from tests.interop.asking import AUTHORITY, TIMEOUT, Ask, Follow, following, program
from tests.interop.tools import NODE_SCRIPT
from tests.support import envoy
from tests.support.gateway import READY, SICK, SILENT, wait_until

How = TypeVar("How")


@dataclass(frozen=True)
class Caller(Generic[How]):
    """A client that judges the gateway by ghealth's answers.

    Args:
        name: Its name in the table.
        healthy: The expected conclusion while the gateway is ready.
        unhealthy: The expected one otherwise.
        how: How it checks: once (`Ask`), or as long as it stays connected (`Follow`).
        tls: Whether it uses the port with TLS.
    """

    name: str
    healthy: str
    unhealthy: str
    how: How
    tls: bool = False

    def expected(self, *, is_ready: bool) -> str:
        """Return the expected conclusion."""
        return self.healthy if is_ready else self.unhealthy


def _first_opinion(row: Caller[Follow]) -> Caller[Ask]:
    """Make a caller that ends when the follower has concluded something."""

    def ask(port: int) -> str:
        with row.how(port) as opinion:
            wait_until(lambda: opinion() in (row.healthy, row.unhealthy), TIMEOUT)
            return opinion()

    return Caller(row.name, row.healthy, row.unhealthy, ask, row.tls)


_HEALTH: Final = "grpc.health.v1.Health"
_CHECK: Final = f"/{_HEALTH}/Check"


def _alb(options: str) -> Ask:
    verdict = r"(?s)^(?:no gRPC status: (no answer)|grpc-status (\d+)) .*^((?:un)?healthy)$"
    return program(verdict, f"ghealth check --as alb --addr $at {options}")


def _kubelet(options: str) -> Ask:
    # Its conclusion, and whether it comes from an answer or from a missing one.
    return program(r"^(success|failure): .*?(NOT_SERVING|$)", f"kubelet -port=$port {options}")


def _probe(options: str) -> Ask:
    return program(r"^(exit \d+)$", f"grpc-health-probe -addr=$at {options}")


def _node(method: str) -> Ask:
    return program(r"^(\w+)$", f"node {NODE_SCRIPT} {method} $at")


def _grpcurl(pattern: str, arguments: str) -> Ask:
    return program(pattern, f"grpcurl -plaintext -max-time 20 {arguments}")


def _list_by(version: str) -> Ask:
    """Call reflection's own method: grpcurl's `list` takes the newest version that it finds."""
    method = f"grpc.reflection.{version}.ServerReflection/ServerReflectionInfo"
    return _grpcurl(rf'"name": "({_HEALTH})"', f"""-d '{{"list_services": "*"}}' $at {method}""")


def _curl(options: str) -> Ask:
    headers = "-H 'content-type: application/grpc' -H 'te: trailers'"
    line = f"curl -sS -m 20 {options} {headers} --data-binary @- -D - -o /dev/null"
    return program(r"^(grpc-status: \d+)", line, stdin="\0" * 5)


_TLS_URL: Final = f"https://$at{_CHECK}"
_PLAIN_URL: Final = f"--http2-prior-knowledge http://$at{_CHECK}"
_HEAD: Final = f"curl -sS -m 20 --head {_PLAIN_URL}"
_HTTP1: Final = "curl -sS -m 20 --http1.1 --http0.9 -o /dev/null -w closed http://$at/"
_GRPC_GO: Final = "clienthealth -addr=$at -duration=1h"
_GRPC_GO_TLS: Final = f"{_GRPC_GO} -ca=$authority"

# What they conclude while the gateway is ready, and otherwise.
_CODE: Final = ("0 healthy", "14 unhealthy")
_UNKNOWN_PATH: Final = ("12 healthy", "14 unhealthy")
_VERDICT: Final = ("success", "failure NOT_SERVING")
_EXIT: Final = ("exit 0", "exit 4")
_SERVING: Final = ("SERVING", "NOT_SERVING")
_STATUS: Final = ("grpc-status: 0", "grpc-status: 14")
_ENVOY: Final = ("healthy", "failed_active_health_check")
_CHANNEL: Final = ("READY", "TRANSIENT_FAILURE")
_LISTED: Final = (_HEALTH, _HEALTH)
_RPC: Final = ("rpc Check", "rpc Check")
_NO_BODY: Final = ("HTTP/2 200 grpc-status: 13", "HTTP/2 200 grpc-status: 13")

FOLLOWERS: Final[tuple[Caller[Follow], ...]] = (
    Caller("Envoy", *_ENVOY, envoy.checker),
    Caller("Envoy, TLS", *_ENVOY, partial(envoy.checker, authority=AUTHORITY), tls=True),
    Caller("grpc-go, health-checking", *_CHANNEL, following(_GRPC_GO)),
    Caller("grpc-go, health-checking, TLS", *_CHANNEL, following(_GRPC_GO_TLS), tls=True),
)
CALLERS: Final[tuple[Caller[Ask], ...]] = (
    Caller("ALB", *_CODE, _alb("")),
    Caller("ALB, defaults", *_UNKNOWN_PATH, _alb("--path /AWS.ALB/healthcheck --matcher 12")),
    Caller("ALB, HTTPS", *_CODE, _alb("--tls"), tls=True),
    Caller("kubelet", *_VERDICT, _kubelet("")),
    Caller("kubelet, `liveness`", "success", "success", _kubelet("-service=liveness")),
    Caller("kubelet, TLS", *_VERDICT, _kubelet("-tls"), tls=True),
    Caller("grpc-health-probe", *_EXIT, _probe("")),
    Caller("grpc-health-probe, TLS", *_EXIT, _probe("-tls -tls-ca-cert=$authority"), tls=True),
    *(_first_opinion(follower) for follower in FOLLOWERS),
    Caller("grpc-js, Check", *_SERVING, _node("Check")),
    Caller("grpc-js, Watch", *_SERVING, _node("Watch")),
    Caller("grpcurl, call", *_SERVING, _grpcurl(r'"status": "(\w+)"', f"$at {_HEALTH}/Check")),
    Caller("grpcurl, list", *_LISTED, _grpcurl(rf"^({_HEALTH})$", "$at list")),
    Caller("grpcurl, list by v1", *_LISTED, _list_by("v1")),
    Caller("grpcurl, list by v1alpha", *_LISTED, _list_by("v1alpha")),
    Caller("grpcurl, describe", *_RPC, _grpcurl(r"(rpc Check) ", f"$at describe {_HEALTH}")),
    Caller("curl", *_STATUS, _curl(_PLAIN_URL)),
    Caller("curl, TLS", *_STATUS, _curl(f"{_TLS_URL} --cacert $authority"), tls=True),
    Caller("tonic's user agent", *_STATUS, _curl(f"{_PLAIN_URL} --user-agent tonic/0.14.2")),
    Caller(
        "HEAD over HTTP/2", *_NO_BODY, program(r"(?s)^(HTTP/2 \d+).*^(grpc-status: \d+)", _HEAD)
    ),
    Caller("HTTP/1.1", "closed", "closed", program("^(closed)$", _HTTP1)),
)

_REFLECTION: Final = "ServerReflection/ServerReflectionInfo"
_PATHS: Final = {
    _CHECK: _CODE,
    "/AWS.ALB/healthcheck": _UNKNOWN_PATH,
    "/": _UNKNOWN_PATH,
    "/healthz/ready": _UNKNOWN_PATH,
    f"/{_HEALTH}": _UNKNOWN_PATH,
    f"/{_HEALTH}/check": _UNKNOWN_PATH,
    f"/{_HEALTH}/List": _CODE,
    f"/{_HEALTH}/Watch": ("no answer unhealthy", "no answer unhealthy"),
    f"/grpc.reflection.v1.{_REFLECTION}": _CODE,
    f"/grpc.reflection.v1alpha.{_REFLECTION}": _CODE,
}
PATHS: Final = tuple(
    Caller(f"`{path}`", *expected, _alb(f"--path {path} --matcher 0,12"))
    for path, expected in _PATHS.items()
)
"""An ALB on every kind of path: healthy only while the gateway is ready, by 0 or by 12."""

_RESTARTS = {"ghealth ended": False, "started again": True, "draining": False, "restarted": True}
LIFE: Final = {"ready": True, "503": False, "ready again": True, **_RESTARTS}
"""What happens while followers are connected, and whether they must see a ready gateway then."""

STATES: Final = {"ready": READY, "503": SICK, "silent": SILENT, "draining": READY}
"""The states that callers see, each with the state of the gateway's agent."""

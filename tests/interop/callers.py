"""Every caller, and what it should conclude. To add one, add a row here."""

from dataclasses import dataclass
from typing import Final

from tests.interop.asking import (
    HOST,
    PATIENCE,
    Ask,
    Follow,
    envoy,
    grpc_go_channel,
    http1,
    program,
    python_asyncio_stub,
    python_stub,
)
from tests.interop.tools import GHEALTH, GO_PROGRAMS, NODE_SCRIPT, Tool
from tests.support.gateway import wait_until


@dataclass(frozen=True, slots=True)
class Row:
    """Somebody who judges the gateway by what ghealth says.

    Args:
        name: What the table calls it.
        needs: What it cannot do without.
        healthy: What it should conclude while the gateway is ready.
        unhealthy: And otherwise.
    """

    name: str
    needs: Tool
    healthy: str
    unhealthy: str


@dataclass(frozen=True, slots=True)
class Caller(Row):
    """Somebody who asks once, and how."""

    ask: Ask


@dataclass(frozen=True, slots=True)
class Follower(Row):
    """Somebody who stays connected and changes its mind, and how."""

    follow: Follow

    def first_opinion(self) -> Caller:
        """Make it a caller, who leaves once its mind is made up."""

        def ask(port: int) -> str:
            with self.follow(port) as opinion:
                wait_until(lambda: opinion() in (self.healthy, self.unhealthy), PATIENCE)
                return opinion()

        return Caller(self.name, self.needs, self.healthy, self.unhealthy, ask)


_AT: Final = f"{HOST}:PORT"
_HEALTH: Final = "grpc.health.v1.Health"
_DEFAULT_PATH: Final = "/AWS.ALB/healthcheck"


def _alb(path: str, matcher: str) -> Ask:
    command = ("check", "--as", "alb", "--addr", _AT, "--path", path, "--matcher", matcher)
    # The code that the target sent, and the verdict: no answer is unhealthy too, but is no answer.
    return program(r"(?s)^grpc-status (\d+) .*^((?:un)?healthy)$", GHEALTH, *command)


def _kubelet(service: str) -> Ask:
    # Its verdict, and whether that is an answer's or for want of one.
    verdict = r"^(success|failure): .*?(NOT_SERVING|$)"
    return program(verdict, GO_PROGRAMS / "kubelet", "-port=PORT", f"-service={service}")


def _node(method: str) -> Ask:
    return program(r"^(\w+)$", "node", NODE_SCRIPT, method, _AT)


def _grpcurl(pattern: str, *arguments: str) -> Ask:
    return program(pattern, GO_PROGRAMS / "grpcurl", "-plaintext", "-max-time", "20", *arguments)


def _list_by(version: str) -> Ask:
    """Call reflection's own method: grpcurl's `list` takes the newest version that it finds."""
    method = f"grpc.reflection.{version}.ServerReflection/ServerReflectionInfo"
    return _grpcurl(rf'"name": "({_HEALTH})"', "-d", '{"list_services": "*"}', _AT, method)


_PROBE: Final = program(r"^(exit \d+)$", GO_PROGRAMS / "grpc-health-probe", f"-addr={_AT}")
_CALL: Final = _grpcurl(r'"status": "(\w+)"', _AT, f"{_HEALTH}/Check")
_LIST: Final = _grpcurl(rf"^({_HEALTH})$", _AT, "list")
_DESCRIBE: Final = _grpcurl(r"(rpc Check) ", _AT, "describe", _HEALTH)
_CURL: Final = program(
    r"^(grpc-status: \d+)",
    *("curl", "--silent", "--show-error", "--max-time", "20", "--http2-prior-knowledge"),
    *("--header", "content-type: application/grpc", "--header", "te: trailers"),
    *("--data-binary", "@-", "--dump-header", "-", "--output", "/dev/null"),
    f"http://{_AT}/{_HEALTH}/Check",
    stdin="\0" * 5,
)

FOLLOWERS: Final = (
    Follower("Envoy", Tool.PYTHON, "healthy", "failed_active_health_check", envoy),
    Follower("grpc-go, health-checking", Tool.GO, "READY", "TRANSIENT_FAILURE", grpc_go_channel),
)

CALLERS: Final = (
    Caller("ALB", Tool.PYTHON, "0 healthy", "14 unhealthy", _alb(f"/{_HEALTH}/Check", "0")),
    Caller("ALB, defaults", Tool.PYTHON, "12 healthy", "14 unhealthy", _alb(_DEFAULT_PATH, "12")),
    Caller("kubelet", Tool.GO, "success", "failure NOT_SERVING", _kubelet("")),
    Caller("kubelet, `liveness`", Tool.GO, "success", "success", _kubelet("liveness")),
    Caller("grpc-health-probe", Tool.GO, "exit 0", "exit 4", _PROBE),
    *(follower.first_opinion() for follower in FOLLOWERS),
    Caller("grpc-js, Check", Tool.NODE, "SERVING", "NOT_SERVING", _node("Check")),
    Caller("grpc-js, Watch", Tool.NODE, "SERVING", "NOT_SERVING", _node("Watch")),
    Caller("Python stub", Tool.PYTHON, "SERVING", "NOT_SERVING", python_stub),
    Caller("Python stub, asyncio", Tool.PYTHON, "SERVING", "NOT_SERVING", python_asyncio_stub),
    Caller("grpcurl, call", Tool.GO, "SERVING", "NOT_SERVING", _CALL),
    Caller("grpcurl, list", Tool.GO, _HEALTH, _HEALTH, _LIST),
    Caller("grpcurl, list by v1", Tool.GO, _HEALTH, _HEALTH, _list_by("v1")),
    Caller("grpcurl, list by v1alpha", Tool.GO, _HEALTH, _HEALTH, _list_by("v1alpha")),
    Caller("grpcurl, describe", Tool.GO, "rpc Check", "rpc Check", _DESCRIBE),
    Caller("curl", Tool.CURL, "grpc-status: 0", "grpc-status: 14", _CURL),
    Caller("HTTP/1.1", Tool.PYTHON, "closed", "closed", http1),
)

"""Every caller, and what it should conclude. To add one, add a row here."""

import functools
from dataclasses import dataclass, field
from typing import Final

from tests.interop.asking import (
    HOST,
    TIMEOUT,
    Ask,
    Follow,
    alb,
    grpc_go_channel,
    http1,
    program,
    python_asyncio_stub,
    python_stub,
)
from tests.interop.certificates import AUTHORITY_FILE
from tests.interop.stage import Ghealth
from tests.interop.tools import GHEALTH, GO_PROGRAMS, NODE_SCRIPT, Tool
from tests.support import envoy
from tests.support.gateway import wait_until


@dataclass(frozen=True, slots=True)
class Row:
    """A client that judges the gateway by ghealth's answers.

    Args:
        name: Its name in the table.
        needs: The tool that it needs.
        healthy: The expected conclusion while the gateway is ready.
        unhealthy: The expected one otherwise.
        tls: Whether it uses the port with TLS.
    """

    name: str
    needs: Tool
    healthy: str
    unhealthy: str
    tls: bool = field(default=False, kw_only=True)

    def port_of(self, ghealth: Ghealth) -> int:
        """Return the port of ghealth that it uses."""
        return ghealth.tls_port if self.tls else ghealth.port


@dataclass(frozen=True, slots=True)
class Caller(Row):
    """A client that checks once, and how."""

    ask: Ask


@dataclass(frozen=True, slots=True)
class Follower(Row):
    """A client that stays connected and changes its conclusion, and how."""

    follow: Follow

    def first_opinion(self) -> Caller:
        """Convert it to a caller, which ends when it has concluded something."""

        def ask(port: int) -> str:
            with self.follow(port) as opinion:
                wait_until(lambda: opinion() in (self.healthy, self.unhealthy), TIMEOUT)
                return opinion()

        return Caller(self.name, self.needs, self.healthy, self.unhealthy, ask, tls=self.tls)


_AT: Final = f"{HOST}:PORT"
_HEALTH: Final = "grpc.health.v1.Health"
_DEFAULT_PATH: Final = "/AWS.ALB/healthcheck"


def _alb(path: str, matcher: str, *options: str) -> Ask:
    command = ("check", "--as", "alb", "--addr", _AT, "--path", path, "--matcher", matcher)
    # The code and the conclusion. Without an answer it is unhealthy too, but the cell differs.
    return program(r"(?s)^grpc-status (\d+) .*^((?:un)?healthy)$", GHEALTH, *command, *options)


def _kubelet(service: str, *options: str) -> Ask:
    # Its conclusion, and whether it comes from an answer or from a missing one.
    verdict = r"^(success|failure): .*?(NOT_SERVING|$)"
    return program(verdict, GO_PROGRAMS / "kubelet", "-port=PORT", f"-service={service}", *options)


def _node(method: str) -> Ask:
    return program(r"^(\w+)$", "node", NODE_SCRIPT, method, _AT)


def _grpcurl(pattern: str, *arguments: str) -> Ask:
    return program(pattern, GO_PROGRAMS / "grpcurl", "-plaintext", "-max-time", "20", *arguments)


def _list_by(version: str) -> Ask:
    """Call reflection's own method: grpcurl's `list` takes the newest version that it finds."""
    method = f"grpc.reflection.{version}.ServerReflection/ServerReflectionInfo"
    return _grpcurl(rf'"name": "({_HEALTH})"', "-d", '{"list_services": "*"}', _AT, method)


def _probe(*options: str) -> Ask:
    return program(r"^(exit \d+)$", GO_PROGRAMS / "grpc-health-probe", f"-addr={_AT}", *options)


def _curl(url: str, *options: str) -> Ask:
    return program(
        r"^(grpc-status: \d+)",
        *("curl", "--silent", "--show-error", "--max-time", "20", *options),
        *("--header", "content-type: application/grpc", "--header", "te: trailers"),
        *("--data-binary", "@-", "--dump-header", "-", "--output", "/dev/null", url),
        stdin="\0" * 5,
    )


def _alb_on(path: str, healthy: int | None, unhealthy: int | None) -> Caller:
    """Make an ALB whose target group has this path, with the codes that it should get."""

    def conclusion(code: int | None) -> str:
        if code is None:
            return "no answer: unhealthy"
        return f"{code} {'healthy' if code in (0, 12) else 'unhealthy'}"

    ask = alb(path, MATCHERS)
    return Caller(f"`{path}`", Tool.PYTHON, conclusion(healthy), conclusion(unhealthy), ask)


_TLS_OPTIONS: Final = ("-tls", f"-tls-ca-cert={AUTHORITY_FILE}", "-tls-server-name=localhost")
_PLAIN_URL: Final = f"http://{_AT}/{_HEALTH}/Check"
_PLAIN_HTTP2: Final = "--http2-prior-knowledge"
_CALL: Final = _grpcurl(r'"status": "(\w+)"', _AT, f"{_HEALTH}/Check")
_LIST: Final = _grpcurl(rf"^({_HEALTH})$", _AT, "list")
_DESCRIBE: Final = _grpcurl(r"(rpc Check) ", _AT, "describe", _HEALTH)
_HEAD: Final = program(
    r"(?s)^(HTTP/2 \d+).*^(grpc-status: \d+)",
    *("curl", "--silent", "--show-error", "--max-time", "20", _PLAIN_HTTP2, "--head", _PLAIN_URL),
)

MATCHERS: Final = {"0": frozenset({0}), "12": frozenset({12}), "0,12": frozenset({0, 12})}
"""The matchers that target groups have, or that tools generate for them."""

FOLLOWERS: Final = (
    Follower("Envoy", Tool.PYTHON, "healthy", "failed_active_health_check", envoy.checker),
    Follower(
        "Envoy, TLS",
        Tool.PYTHON,
        "healthy",
        "failed_active_health_check",
        functools.partial(envoy.checker, authority=AUTHORITY_FILE),
        tls=True,
    ),
    Follower("grpc-go, health-checking", Tool.GO, "READY", "TRANSIENT_FAILURE", grpc_go_channel()),
    Follower(
        "grpc-go, health-checking, TLS",
        Tool.GO,
        "READY",
        "TRANSIENT_FAILURE",
        grpc_go_channel(f"-ca={AUTHORITY_FILE}"),
        tls=True,
    ),
)

CALLERS: Final = (
    Caller("ALB", Tool.PYTHON, "0 healthy", "14 unhealthy", _alb(f"/{_HEALTH}/Check", "0")),
    Caller("ALB, defaults", Tool.PYTHON, "12 healthy", "14 unhealthy", _alb(_DEFAULT_PATH, "12")),
    Caller(
        "ALB, HTTPS",
        Tool.PYTHON,
        "0 healthy",
        "14 unhealthy",
        _alb(f"/{_HEALTH}/Check", "0", "--tls"),
        tls=True,
    ),
    Caller("kubelet", Tool.GO, "success", "failure NOT_SERVING", _kubelet("")),
    Caller("kubelet, `liveness`", Tool.GO, "success", "success", _kubelet("liveness")),
    Caller(
        "kubelet, TLS", Tool.GO, "success", "failure NOT_SERVING", _kubelet("", "-tls"), tls=True
    ),
    Caller("grpc-health-probe", Tool.GO, "exit 0", "exit 4", _probe()),
    Caller("grpc-health-probe, TLS", Tool.GO, "exit 0", "exit 4", _probe(*_TLS_OPTIONS), tls=True),
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
    Caller("curl", Tool.CURL, "grpc-status: 0", "grpc-status: 14", _curl(_PLAIN_URL, _PLAIN_HTTP2)),
    Caller(
        "curl, TLS",
        Tool.CURL,
        "grpc-status: 0",
        "grpc-status: 14",
        _curl(f"https://{_AT}/{_HEALTH}/Check", "--cacert", str(AUTHORITY_FILE)),
        tls=True,
    ),
    Caller(
        "tonic's user agent",
        Tool.CURL,
        "grpc-status: 0",
        "grpc-status: 14",
        _curl(_PLAIN_URL, _PLAIN_HTTP2, "--user-agent", "tonic/0.14.2"),
    ),
    Caller(
        "HEAD over HTTP/2",
        Tool.CURL,
        "HTTP/2 200 grpc-status: 13",
        "HTTP/2 200 grpc-status: 13",
        _HEAD,
    ),
    Caller("HTTP/1.1", Tool.PYTHON, "closed", "closed", http1),
)

PATHS: Final = (
    _alb_on(f"/{_HEALTH}/Check", 0, 14),
    _alb_on(_DEFAULT_PATH, 12, 14),
    _alb_on("/", 12, 14),
    _alb_on("*", 12, 14),
    _alb_on("/healthz/ready", 12, 14),
    _alb_on(f"/{_HEALTH}", 12, 14),
    _alb_on(f"/{_HEALTH}/check", 12, 14),
    _alb_on(f"/{_HEALTH}/List", 0, 14),
    _alb_on(f"/{_HEALTH}/Watch", None, None),
    _alb_on("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", 0, 14),
    _alb_on("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", 0, 14),
)
"""An ALB on every kind of path: healthy with one of `MATCHERS` only while the gateway is ready."""

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

    def expected(self, *, is_ready: bool) -> str:
        """Return the expected conclusion."""
        return self.healthy if is_ready else self.unhealthy


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


PYTHON, GO, CURL = Tool.PYTHON, Tool.GO, Tool.CURL
_CHECK: Final = f"/{_HEALTH}/Check"
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

_NO_BODY: Final = "HTTP/2 200 grpc-status: 13"
_CURL_TLS: Final = _curl(f"https://{_AT}{_CHECK}", "--cacert", str(AUTHORITY_FILE))
_TONIC: Final = _curl(_PLAIN_URL, _PLAIN_HTTP2, "--user-agent", "tonic/0.14.2")

MATCHERS: Final = {"0": frozenset({0}), "12": frozenset({12}), "0,12": frozenset({0, 12})}
"""The matchers that target groups have, or that tools generate for them."""

LIFE: Final = {
    "ready": True,
    "503": False,
    "ready again": True,
    "ghealth ended": False,
    "started again": True,
    "draining": False,
    "restarted": True,
}
"""What happens while followers are connected, and whether they must see a ready gateway then."""

_SERVING: Final = ("SERVING", "NOT_SERVING")
_STATUS: Final = ("grpc-status: 0", "grpc-status: 14")
_ENVOY: Final = ("healthy", "failed_active_health_check")
_CHANNEL: Final = ("READY", "TRANSIENT_FAILURE")

FOLLOWERS: Final = (
    Follower("Envoy", PYTHON, *_ENVOY, envoy.checker),
    Follower(
        "Envoy, TLS",
        PYTHON,
        *_ENVOY,
        functools.partial(envoy.checker, authority=AUTHORITY_FILE),
        tls=True,
    ),
    Follower("grpc-go, health-checking", GO, *_CHANNEL, grpc_go_channel()),
    Follower(
        "grpc-go, health-checking, TLS",
        GO,
        *_CHANNEL,
        grpc_go_channel(f"-ca={AUTHORITY_FILE}"),
        tls=True,
    ),
)

CALLERS: Final = (
    Caller("ALB", PYTHON, "0 healthy", "14 unhealthy", _alb(_CHECK, "0")),
    Caller("ALB, defaults", PYTHON, "12 healthy", "14 unhealthy", _alb(_DEFAULT_PATH, "12")),
    Caller("ALB, HTTPS", PYTHON, "0 healthy", "14 unhealthy", _alb(_CHECK, "0", "--tls"), tls=True),
    Caller("kubelet", GO, "success", "failure NOT_SERVING", _kubelet("")),
    Caller("kubelet, `liveness`", GO, "success", "success", _kubelet("liveness")),
    Caller("kubelet, TLS", GO, "success", "failure NOT_SERVING", _kubelet("", "-tls"), tls=True),
    Caller("grpc-health-probe", GO, "exit 0", "exit 4", _probe()),
    Caller("grpc-health-probe, TLS", GO, "exit 0", "exit 4", _probe(*_TLS_OPTIONS), tls=True),
    *(follower.first_opinion() for follower in FOLLOWERS),
    Caller("grpc-js, Check", Tool.NODE, *_SERVING, _node("Check")),
    Caller("grpc-js, Watch", Tool.NODE, *_SERVING, _node("Watch")),
    Caller("Python stub", PYTHON, *_SERVING, python_stub),
    Caller("Python stub, asyncio", PYTHON, *_SERVING, python_asyncio_stub),
    Caller("grpcurl, call", GO, *_SERVING, _CALL),
    Caller("grpcurl, list", GO, _HEALTH, _HEALTH, _LIST),
    Caller("grpcurl, list by v1", GO, _HEALTH, _HEALTH, _list_by("v1")),
    Caller("grpcurl, list by v1alpha", GO, _HEALTH, _HEALTH, _list_by("v1alpha")),
    Caller("grpcurl, describe", GO, "rpc Check", "rpc Check", _DESCRIBE),
    Caller("curl", CURL, *_STATUS, _curl(_PLAIN_URL, _PLAIN_HTTP2)),
    Caller("curl, TLS", CURL, *_STATUS, _CURL_TLS, tls=True),
    Caller("tonic's user agent", CURL, *_STATUS, _TONIC),
    Caller("HEAD over HTTP/2", CURL, _NO_BODY, _NO_BODY, _HEAD),
    Caller("HTTP/1.1", PYTHON, "closed", "closed", http1),
)

_REFLECTION: Final = "ServerReflection/ServerReflectionInfo"
_OTHER_PATHS: Final = (
    _DEFAULT_PATH,
    "/",
    "*",
    "/healthz/ready",
    f"/{_HEALTH}",
    f"/{_HEALTH}/check",
)
PATHS: Final = (
    _alb_on(_CHECK, 0, 14),
    *(_alb_on(path, 12, 14) for path in _OTHER_PATHS),
    _alb_on(f"/{_HEALTH}/List", 0, 14),
    _alb_on(f"/{_HEALTH}/Watch", None, None),
    _alb_on(f"/grpc.reflection.v1.{_REFLECTION}", 0, 14),
    _alb_on(f"/grpc.reflection.v1alpha.{_REFLECTION}", 0, 14),
)
"""An ALB on every kind of path: healthy with one of `MATCHERS` only while the gateway is ready."""

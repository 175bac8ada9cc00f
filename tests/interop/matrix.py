"""Run `ghealth check` and the real grpc-health-probe over one matrix, and compare exit codes."""

import datetime as dt
import itertools
import shlex
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import grpc
import trustme
from grpc_health.v1 import health_pb2

from ghealth.health import REASON_KEY
from tests.interop.tools import ENVIRONMENT, GHEALTH, GO_PROGRAMS, BuildError, build_probe
from tests.support import interrupt

AT_ONCE: Final = 12
"""Cases at a time: most of them wait for a timeout."""

TIMEOUT: Final = 60.0
"""Seconds within which each run must end."""

WITH_REASON: Final = "UNAVAILABLE with ghealth's reason: 4, there 3"
PLAIN_SECONDS: Final = "plain seconds in a duration, there 1"
HELP: Final = "-h: 0, there 1"

_OTHER_NAME: Final = "other.example"
_TIMEOUT: Final = "1s"
_RETRY_TIMEOUT: Final = "5s"
"""Timeout for a repeated case in which the programs differed, perhaps on a busy machine."""


@dataclass(frozen=True, slots=True)
class Case:
    """One run of both programs.

    Args:
        name: Its name in the output.
        arguments: The command line.
        difference: The documented difference, with the exit codes there and here; otherwise both
            must end with the same code.
    """

    name: str
    arguments: tuple[str, ...]
    difference: tuple[str, int, int] | None = None

    def is_passed(self, codes: tuple[int, int]) -> bool:
        """Return whether these exit codes are the expected ones."""
        there, _ = codes
        return codes == ((there, there) if self.difference is None else self.difference[1:])


@dataclass(frozen=True, slots=True)
class Servers:
    """The addresses of all servers, by name, and the files for TLS.

    Args:
        addresses: The addresses.
        folder: Where the files are.
    """

    addresses: dict[str, str] = field(default_factory=dict)
    folder: Path = Path()

    def file(self, name: str) -> str:
        """Return a file's path."""
        return str(self.folder / name)


def main() -> int:
    """Run the matrix and return the exit code."""
    try:
        build_probe()
    except (BuildError, FileNotFoundError) as error:
        print(error, file=sys.stderr)
        return 1
    with running() as servers, ThreadPoolExecutor(AT_ONCE) as pool:
        cases = [*tls_cases(servers), *state_cases(servers), *argument_cases(servers)]
        outcomes = list(pool.map(compared, cases))
        for number, case in enumerate(cases):
            if not case.is_passed(outcomes[number]):
                outcomes[number] = compared(case, _RETRY_TIMEOUT)
    documented: Counter[str] = Counter()
    codes: Counter[int] = Counter()
    failed = 0
    for case, (there, here) in zip(cases, outcomes, strict=True):
        codes[there] += 1
        if not case.is_passed((there, here)):
            failed += 1
            print(f"{case.name}: {here}, there {there}: {' '.join(case.arguments)}")
        elif case.difference is not None:
            documented[case.difference[0]] += 1
    for code, count in sorted(codes.items()):
        print(f"exit code {code} of grpc-health-probe: {count} cases")
    for difference, count in documented.items():
        print(f"documented difference in {count} cases: {difference}")
    print(f"{len(cases) - failed} passed, {failed} failed")
    return 1 if failed else 0


def compared(case: Case, timeout: str = _TIMEOUT) -> tuple[int, int]:
    """Run both programs and return their exit codes, grpc-health-probe's first.

    Args:
        case: The case; its own flags overrule the timeout.
        timeout: For both timeouts.
    """
    commands = ([GO_PROGRAMS / "grpc-health-probe"], [GHEALTH, "check"])
    timeouts = (f"-connect-timeout={timeout}", f"-rpc-timeout={timeout}")
    there, here = (
        subprocess.run(
            [*command, *timeouts, *case.arguments],
            env=ENVIRONMENT,
            capture_output=True,
            timeout=TIMEOUT,
            check=False,
        ).returncode
        for command in commands
    )
    return there, here


def client_modes(servers: Servers) -> dict[str, tuple[str, ...]]:
    """Return the ways in which a client uses TLS."""
    authority = f"-tls-ca-cert={servers.file('ca.pem')}"
    pair = (
        f"-tls-client-cert={servers.file('client.pem')}",
        f"-tls-client-key={servers.file('client.key')}",
    )
    return {
        "plaintext": (),
        "TLS, the system's authorities": ("-tls",),
        "TLS": ("-tls", authority),
        "TLS, no verification": ("-tls", "-tls-no-verify"),
        "TLS, server name": ("-tls", authority, "-tls-server-name=localhost"),
        "TLS, other server name": ("-tls", authority, f"-tls-server-name={_OTHER_NAME}"),
        "TLS, client pair": ("-tls", authority, *pair),
        "TLS, client pair, no verification": ("-tls", "-tls-no-verify", *pair),
    }


def tls_cases(servers: Servers) -> Iterator[Case]:
    """Every server by every way to use TLS."""
    for (mode, arguments), (server, addr) in itertools.product(
        client_modes(servers).items(), servers.addresses.items()
    ):
        yield Case(f"{server} by {mode}", (f"-addr={addr}", *arguments))


def state_cases(servers: Servers) -> Iterator[Case]:
    """Every state of a service over every transport that connects, and by the request's flags."""
    modes = client_modes(servers)
    plain = (f"-addr={servers.addresses['plaintext']}",)
    unverified = (
        f"-addr={servers.addresses['expired']}",
        *modes["TLS, no verification"],
    )
    transports = {
        "plaintext": plain,
        "unix": (f"-addr={servers.addresses['unix']}",),
        "TLS": (f"-addr={servers.addresses['TLS']}", *modes["TLS"]),
        "TLS, no verification": unverified,
        "mTLS": (f"-addr={servers.addresses['mTLS']}", *modes["TLS, client pair"]),
        "gzip": (*plain, "-gzip"),
        "gzip, no verification": (*unverified, "-gzip"),
        "header": (*plain, "-rpc-header=a: b", "-rpc-header", "c-bin:d"),
        "header, no verification": (*unverified, "-rpc-header=a: b", "-rpc-header", "c-bin:d"),
        "user agent, verbose": (*plain, "-user-agent=me", "-v"),
        "two dashes": (f"--addr={servers.addresses['plaintext']}", "--rpc-timeout", "2s"),
    }
    for (name, arguments), state in itertools.product(transports.items(), STATES):
        difference = (WITH_REASON, 3, 4) if state == "reason" else None
        yield Case(f"{state or 'serving'} by {name}", (*arguments, f"-service={state}"), difference)


def argument_cases(servers: Servers) -> Iterator[Case]:
    """Command lines: syntax, durations, addresses, headers and flags that depend on others."""
    serving = f"-addr={servers.addresses['plaintext']}"
    port = serving.rpartition(":")[2]
    words = {
        "SERVING": serving,
        "SECURE": f"-addr={servers.addresses['TLS']} -tls",
        "CA ": f"-tls-ca-cert={servers.file('ca.pem')} ",
        "CERT": servers.file("client.pem"),
        "KEY": servers.file("client.key"),
        "EMPTY": servers.file("empty"),
    }
    for arguments in (
        *_command_lines(_SYNTAX, words),
        *([f"-addr={addr.replace('PORT', port)}"] for addr in _ADDRESSES),
        *([serving, f"-rpc-header={header}"] for header in _HEADERS),
        *([serving, f"-{flag}={text}"] for flag in _TIMEOUT_FLAGS for text in _DURATIONS),
        *_command_lines(_TLS_MISTAKES, words),
    ):
        yield Case("arguments", tuple(arguments))
    for flag in _TIMEOUT_FLAGS:
        yield Case("arguments", (serving, f"-{flag}=2"), (PLAIN_SECONDS, 1, 0))
    for flag in ("-h", "--help", "-help"):
        yield Case("arguments", (flag,), (HELP, 1, 0))


_TIMEOUT_FLAGS: Final = ("connect-timeout", "rpc-timeout")
_DURATIONS: Final = (
    *("2s", "+2s", "2000ms", "0.5m", "1m1s", "2.s", "99999h", "2000000us", "2000000µs"),
    *("", "x", "0", "0s", "-1s", "1 s", "s", "1d", "+-1s", "9999999h", "0.1ns"),
)
_HEADERS: Final = (
    *("a: b", "a:b:c", "A: b", "a:", "te: x", ":path: /x", "content-type: x", "user-agent: x"),
    *("a", "", ": b", "a b: c", "é: b", "a: é", "a: b\tc", "a: b\nc", "x-bin: é"),
    *("grpc-timeout: 1", "grpc-status: x", "grpc-encoding: x", "host: x", "grpc-foo: x"),
)


_SYNTAX: Final = """
    -version; --version; -version=true -rpc-timeout=0; -version -rpc-timeout=x; -version=maybe
    -version -other; -addr=; -addr ''; -addr; -other; -other=a SERVING; -addr=127.0.0.1:1 SERVING
    SERVING -service; SERVING -service -v; SERVING -service=a=b; SERVING -service=\udcff
    SERVING '-service=not serving' -service=; SERVING -v=true; SERVING -v=maybe
    SERVING -v false -other; SERVING a -other; SERVING - -other; SERVING -- -other
    SERVING '' -other; -SERVING ---v; SERVING -=a; SERVING -tls=false; SERVING -tls=F
    SERVING -tls -tls=0; SERVING -tls=true -connect-timeout=500ms
    SERVING -tls false -connect-timeout=500ms; SERVING -gzip=1; SERVING -gzip=yes
    SERVING -user-agent=; SERVING -user-agent 'a b'; SERVING -user-agent=é
"""
_TLS_MISTAKES: Final = """
    SERVING -tls-no-verify; SERVING -tls-no-verify=false; SERVING -tls-ca-cert=CERT
    SERVING -tls-ca-cert=; SERVING -tls-client-cert=CERT; SERVING -tls-client-key=KEY
    SERVING -tls-client-cert=CERT -tls-client-key=KEY; SERVING -tls-server-name=a
    SECURE CA -tls-client-cert=CERT; SECURE CA -tls-client-key=KEY; SECURE CA -tls-no-verify
    SECURE -tls-no-verify -tls-server-name=a; SECURE CA -tls-ca-cert=
    SECURE CA -tls-ca-cert=/nonexistent; SECURE CA -tls-ca-cert=EMPTY; SECURE CA -tls-ca-cert=KEY
    SECURE CA -tls-client-cert=CERT -tls-client-key=/nonexistent
    SECURE CA -tls-client-cert=CERT -tls-client-key=EMPTY
    SECURE CA -tls-client-cert=KEY -tls-client-key=KEY
"""
"""Command lines; the words in capitals are replaced."""


def _command_lines(text: str, words: Mapping[str, str]) -> Iterator[list[str]]:
    for name, word in words.items():
        text = text.replace(name, word)
    for line in text.strip().splitlines():
        yield from map(shlex.split, line.split(";"))


_ADDRESSES: Final = (
    *(
        "localhost:PORT",
        ":PORT",
        "0.0.0.0:PORT",
        "[::]:PORT",
        "127.0.0.1:PORT ",
        "[127.0.0.1]:PORT",
    ),
    *("dns:///localhost:PORT", "passthrough:///127.0.0.1:PORT", "127.0.0.1", "localhost"),
    *("127.0.0.1:0", "127.0.0.1:x", "127.0.0.1:99999", "::1:1", "ghealth.invalid:PORT", "a..b:1"),
    *("unix:/nonexistent", "unix:", f"unix:/{'a' * 200}", "unix-abstract:ghealth-nobody"),
)


def _serves(status: int) -> bytes:
    message: bytes = health_pb2.HealthCheckResponse(status=status).SerializeToString()
    return message


def _fails(code: grpc.StatusCode, details: str = "") -> Callable[[Any], bytes]:
    def fail(context: Any) -> bytes:
        context.abort(code, details)
        raise AssertionError

    return fail


def _fails_with_reason(context: Any) -> bytes:
    context.set_trailing_metadata(((REASON_KEY, "gateway answered 503"),))
    return _fails(grpc.StatusCode.UNAVAILABLE, "gateway answered 503")(context)


def _hangs(context: Any) -> bytes:
    gone = threading.Event()
    if context.add_callback(gone.set):
        gone.wait(TIMEOUT)
    return b""


STATES: Final[dict[str, Callable[[Any], bytes]]] = {
    "": lambda _: _serves(1),
    "not serving": lambda _: _serves(2),
    "status unknown": lambda _: _serves(0),
    "status 99": lambda _: _serves(99),
    "malformed": lambda _: b"\xff",
    "not found": _fails(grpc.StatusCode.NOT_FOUND, "unknown service"),
    "unimplemented": _fails(grpc.StatusCode.UNIMPLEMENTED),
    "unavailable": _fails(grpc.StatusCode.UNAVAILABLE, "gateway answered 503"),
    "reason": _fails_with_reason,
    "internal": _fails(grpc.StatusCode.INTERNAL),
    "hang": _hangs,
}
"""The answer to a Check, by the service's name."""


def _check(request: Any, context: Any) -> bytes:
    state = STATES.get(request.service, STATES["not found"])
    return state(context)


@contextmanager
def running() -> Iterator[Servers]:
    """Run all servers."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        servers = Servers(folder=folder)
        own, foreign = trustme.CA(), trustme.CA()
        past = dt.datetime(2001, 1, 1, tzinfo=dt.UTC)
        leaf, client = own.issue_cert("localhost"), own.issue_cert("client")
        own.cert_pem.write_to_path(servers.file("ca.pem"))
        client.cert_chain_pems[0].write_to_path(servers.file("client.pem"))
        client.private_key_pem.write_to_path(servers.file("client.key"))
        (folder / "empty").touch()

        def serve(name: str, credentials: Any = None, *, implemented: bool = True) -> None:
            server = grpc.server(
                ThreadPoolExecutor(AT_ONCE * 2), options=[("grpc.so_reuseport", 0)]
            )
            if implemented:
                server.add_generic_rpc_handlers((_HANDLERS,))
            if name == "unix":
                address = f"unix:{servers.file('health.sock')}"
                server.add_insecure_port(address)
            else:
                add = server.add_secure_port if credentials else server.add_insecure_port
                port = add("127.0.0.1:0", *([credentials] if credentials else []))
                address = f"localhost:{port}"
            server.start()
            stack.callback(lambda: server.stop(None).wait())
            servers.addresses[name] = address

        serve("plaintext")
        serve("unix")
        serve("without Health", implemented=False)
        serve("TLS", _credentials(leaf))
        serve("expired", _credentials(own.issue_cert("localhost", not_after=past)))
        serve("foreign", _credentials(foreign.issue_cert("localhost")))
        serve("wrong name", _credentials(own.issue_cert(_OTHER_NAME)))
        serve("name only in the subject", _credentials(own.issue_cert(common_name="localhost")))
        serve("mTLS", _credentials(leaf, clients=own))
        serve("mTLS, foreign clients", _credentials(leaf, clients=foreign))
        for name, behave in {
            "refused": None,
            "silent": _is_silent,
            "HTTP/1.1": _speaks_http1,
            "TLS without ALPN": _tls_without_alpn(leaf),
        }.items():
            servers.addresses[name] = stack.enter_context(_listening(behave))
        yield servers


_HANDLERS: Final = grpc.method_handlers_generic_handler(
    "grpc.health.v1.Health",
    {
        "Check": grpc.unary_unary_rpc_method_handler(
            _check, request_deserializer=health_pb2.HealthCheckRequest.FromString
        )
    },
)


def _credentials(leaf: trustme.LeafCert, clients: trustme.CA | None = None) -> Any:
    chain = b"".join(part.bytes() for part in leaf.cert_chain_pems)
    return grpc.ssl_server_credentials(
        [(leaf.private_key_pem.bytes(), chain)],
        root_certificates=clients.cert_pem.bytes() if clients else None,
        require_client_auth=clients is not None,
    )


@contextmanager
def _listening(behave: Callable[[socket.socket], None] | None) -> Iterator[str]:
    """Hold a port, and let a thread handle each connection."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        if behave is not None:
            listener.listen()
            threading.Thread(target=_accept, args=(listener, behave), daemon=True).start()
        yield f"localhost:{listener.getsockname()[1]}"


def _accept(listener: socket.socket, behave: Callable[[socket.socket], None]) -> None:
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        threading.Thread(target=behave, args=(connection,), daemon=True).start()


def _is_silent(connection: socket.socket) -> None:
    with connection:
        while connection.recv(4096):
            pass


def _speaks_http1(connection: socket.socket) -> None:
    with connection:
        connection.recv(4096)
        connection.sendall(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n")


def _tls_without_alpn(leaf: trustme.LeafCert) -> Callable[[socket.socket], None]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    leaf.configure_cert(context)

    def behave(connection: socket.socket) -> None:
        try:
            _is_silent(context.wrap_socket(connection, server_side=True))
        except OSError:
            connection.close()

    return behave


if __name__ == "__main__":
    interrupt.run(main)

"""Run `ghealth check` and the real grpc-health-probe over one matrix, and compare exit codes.

A case is a command line. The words with a dollar sign are the servers and the files of the run.
"""

import asyncio
import datetime as dt
import shlex
import ssl
import sys
from asyncio.subprocess import DEVNULL
from collections.abc import AsyncGenerator, Awaitable, Mapping
from contextlib import AsyncExitStack
from itertools import product
from string import Template
from typing import Any

import grpc
import pytest
import trustme
from grpc_health.v1 import health_pb2

from ghealth.health import REASON_KEY
from tests.interop.tools import ENVIRONMENT, build
from tests.support.peers import is_silent, nobody, says, target

AT_ONCE = 12
"""Cases at a time: most of them wait for a timeout."""

PROGRAMS = ("grpc-health-probe", "ghealth check")
TIMEOUT = 60.0
"""Seconds within which each run must end."""

SERVERS = (
    *("plaintext", "unix", "without_health", "tls", "expired", "foreign", "wrong_name"),
    *("name_only_in_the_subject", "mtls", "mtls_foreign_clients"),
    *("refused", "silent", "http1", "tls_without_alpn"),
)
CLIENTS = (
    *("", "-tls", "-tls $ca", "-tls -tls-no-verify", "-tls $ca -tls-server-name=localhost"),
    *("-tls $ca -tls-server-name=other.example", "-tls $ca $pair", "-tls -tls-no-verify $pair"),
)
"""The ways in which a client uses TLS."""

METADATA = "-rpc-header='a: b' -rpc-header c-bin:d"
TRANSPORTS = (
    *("$serving", "-addr=$unix", "$secure $ca", "$unverified", "-addr=$mtls -tls $ca $pair"),
    *("$serving -gzip", "$unverified -gzip", f"$serving {METADATA}", f"$unverified {METADATA}"),
    *("$serving -user-agent=me -v", "--addr=$plaintext --rpc-timeout 2s"),
)
"""Every transport that connects, and the flags of the request."""

STATES = {
    "": b"\x08\x01",
    "not serving": b"\x08\x02",
    "status unknown": b"",
    "status 99": b"\x08\x63",
    "malformed": b"\xff",
    "not found": grpc.StatusCode.NOT_FOUND,
    "unimplemented": grpc.StatusCode.UNIMPLEMENTED,
    "unavailable": grpc.StatusCode.UNAVAILABLE,
    "internal": grpc.StatusCode.INTERNAL,
    "hang": None,
}
"""The answer to a Check by the service's name: a message, a code or none."""

SYNTAX = """
    -version; --version; -version=true -rpc-timeout=0; -version -rpc-timeout=x; -version=maybe
    -version -other; -addr=; -addr ''; -addr; -other; -other=a $serving; -addr=127.0.0.1:1 $serving
    $serving -service; $serving -service -v; $serving -service=a=b; $serving -service=\udcff
    $serving '-service=not serving' -service=; $serving -v=true; $serving -v=maybe
    $serving -v false -other; $serving a -other; $serving - -other; $serving -- -other
    $serving '' -other; -$serving ---v; $serving -=a; $serving -tls=false; $serving -tls=F
    $serving -tls -tls=0; $serving -tls=true -connect-timeout=500ms
    $serving -tls false -connect-timeout=500ms; $serving -gzip=1; $serving -gzip=yes
    $serving -user-agent=; $serving -user-agent 'a b'; $serving -user-agent=é
    $serving -tls-no-verify; $serving -tls-no-verify=false; $serving -tls-ca-cert=$cert
    $serving -tls-ca-cert=; $serving -tls-client-cert=$cert; $serving -tls-client-key=$key
    $serving $pair; $serving -tls-server-name=a; $secure $ca -tls-client-cert=$cert
    $secure $ca -tls-client-key=$key; $secure $ca -tls-no-verify
    $secure -tls-no-verify -tls-server-name=a; $secure $ca -tls-ca-cert=
    $secure $ca -tls-ca-cert=/nonexistent; $secure $ca -tls-ca-cert=$empty
    $secure $ca -tls-ca-cert=$key; $secure $ca -tls-client-cert=$cert -tls-client-key=/nonexistent
    $secure $ca -tls-client-cert=$cert -tls-client-key=$empty
    $secure $ca -tls-client-cert=$key -tls-client-key=$key
"""
ADDRESSES = (
    *(":$port", "0.0.0.0:$port", "[::]:$port", "'127.0.0.1:$port '", "[127.0.0.1]:$port"),
    *("dns:///localhost:$port", "passthrough:///127.0.0.1:$port", "127.0.0.1", "localhost"),
    *("127.0.0.1:0", "127.0.0.1:x", "127.0.0.1:99999", "::1:1", "ghealth.invalid:$port", "a..b:1"),
    *("unix:/nonexistent", "unix:", f"unix:/{'a' * 200}", "unix-abstract:ghealth-nobody"),
)
HEADERS = (
    *("a: b", "a:b:c", "A: b", "a:", "te: x", ":path: /x", "content-type: x", "user-agent: x"),
    *("a", "", ": b", "a b: c", "é: b", "a: é", "a: b\tc", "a: b\nc", "x-bin: é"),
    *("grpc-timeout: 1", "grpc-status: x", "grpc-encoding: x", "host: x", "grpc-foo: x"),
)
TIMEOUTS = ("-connect-timeout", "-rpc-timeout")
DURATIONS = (
    *("2s", "+2s", "2000ms", "0.5m", "1m1s", "2.s", "99999h", "2000000us", "2000000µs"),
    *("", "x", "0", "0s", "-1s", "1 s", "s", "1d", "+-1s", "9999999h", "0.1ns"),
)
SAME = (
    *(f"-addr=${server} {client}" for client, server in product(CLIENTS, SERVERS)),
    *(f"{transport} -service='{state}'" for transport, state in product(TRANSPORTS, STATES)),
    *SYNTAX.replace("\n", ";").split(";")[1:-1],
    *(f"-addr={address}" for address in ADDRESSES),
    *(f"$serving -rpc-header={shlex.quote(header)}" for header in HEADERS),
    *(f"$serving {flag}={shlex.quote(text)}" for flag, text in product(TIMEOUTS, DURATIONS)),
)
REASON = "reason"
"""The service whose code is UNAVAILABLE, with ghealth's reason."""

DIFFERENT = {
    **{f"{transport} -service={REASON}": (3, 4) for transport in TRANSPORTS},
    **{f"$serving {flag}=2": (1, 0) for flag in TIMEOUTS},
    **dict.fromkeys(("-h", "-help", "--help"), (1, 0)),
}
"""The documented differences: the exit codes there and here."""

Outcomes = Mapping[str, Awaitable[tuple[int, int]]]
"""The exit codes of grpc-health-probe and `ghealth check`, by case."""


async def check(request: Any, context: Any) -> Any:
    """Answer a Check."""
    answer: Any = STATES.get(request.service, grpc.StatusCode.NOT_FOUND)
    if request.service == REASON:
        context.set_trailing_metadata(((REASON_KEY, "gateway answered 503"),))
        answer = grpc.StatusCode.UNAVAILABLE
    if answer is None:
        await asyncio.Event().wait()
    if isinstance(answer, grpc.StatusCode):
        await context.abort(answer, "gateway answered 503")
    return answer


def credentials(leaf: trustme.LeafCert, clients: trustme.CA | None = None) -> Any:
    """Make a server's credentials, which may demand a client's certificate."""
    return grpc.ssl_server_credentials(
        [(leaf.private_key_pem.bytes(), leaf.cert_chain_pems[0].bytes())],
        root_certificates=clients.cert_pem.bytes() if clients else None,
        require_client_auth=clients is not None,
    )


HTTP1 = b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n"
METHOD: Any = grpc.unary_unary_rpc_method_handler(check, health_pb2.HealthCheckRequest.FromString)
HEALTH = grpc.method_handlers_generic_handler("grpc.health.v1.Health", {"Check": METHOD})


@pytest.fixture(scope="module")
async def words(tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[dict[str, str], None]:
    """Run the servers; yield the words that stand for them and for the files."""
    folder = tmp_path_factory.mktemp("matrix")
    own, foreign = trustme.CA(), trustme.CA()
    leaf, client = own.issue_cert("localhost"), own.issue_cert("client")
    past = dt.datetime(2001, 1, 1, tzinfo=dt.UTC)
    files = {
        "authority": own.cert_pem.bytes(),
        "cert": client.cert_chain_pems[0].bytes(),
        "key": client.private_key_pem.bytes(),
        "empty": b"",
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)
    servers = {
        "plaintext": None,
        "without_health": None,
        "tls": credentials(leaf),
        "expired": credentials(own.issue_cert("localhost", not_after=past)),
        "foreign": credentials(foreign.issue_cert("localhost")),
        "wrong_name": credentials(own.issue_cert("other.example")),
        "name_only_in_the_subject": credentials(own.issue_cert(common_name="localhost")),
        "mtls": credentials(leaf, own),
        "mtls_foreign_clients": credentials(leaf, foreign),
    }
    without_alpn = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    leaf.configure_cert(without_alpn)
    peers = {"silent": is_silent, "http1": says(HTTP1), "tls_without_alpn": is_silent}
    async with AsyncExitStack() as stack:
        ports = {"refused": stack.enter_context(nobody())}
        for name, given in servers.items():
            server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
            at = ("127.0.0.1:0", given) if given else ("127.0.0.1:0",)
            ports[name] = (server.add_secure_port if given else server.add_insecure_port)(*at)
            if name == "plaintext":
                server.add_insecure_port(f"unix:{folder}/socket")
            server.add_generic_rpc_handlers(() if name == "without_health" else (HEALTH,))
            await server.start()
            stack.push_async_callback(server.stop, None)
        for name, behaviour in peers.items():
            tls = without_alpn if name == "tls_without_alpn" else None
            peer = await stack.enter_async_context(target(behaviour, reads=False, tls=tls))
            ports[name] = peer.port
        found = {name: str(folder / name) for name in files}
        found |= {name: f"localhost:{port}" for name, port in ports.items()}
        found |= {
            "unix": f"unix:{folder}/socket",
            "port": str(ports["plaintext"]),
            "serving": f"-addr={found['plaintext']}",
            "secure": f"-addr={found['tls']} -tls",
            "unverified": f"-addr={found['expired']} -tls -tls-no-verify",
            "ca": f"-tls-ca-cert={found['authority']}",
            "pair": f"-tls-client-cert={found['cert']} -tls-client-key={found['key']}",
        }
        yield found


@pytest.fixture(scope="module")
async def outcomes(words: dict[str, str]) -> AsyncGenerator[Outcomes, None]:
    """Run all cases, some at a time."""
    at_once = asyncio.Semaphore(AT_ONCE)
    build("github.com/grpc-ecosystem/grpc-health-probe")

    async def exit_code(program: str, case: str, seconds: int) -> int:
        timeouts = (f"-connect-timeout={seconds}s", f"-rpc-timeout={seconds}s")
        command = (*program.split(), *timeouts, *shlex.split(Template(case).substitute(words)))
        process = await asyncio.create_subprocess_exec(
            *command, env=ENVIRONMENT, stdout=DEVNULL, stderr=DEVNULL
        )
        return await asyncio.wait_for(process.wait(), TIMEOUT)

    async def run(case: str) -> tuple[int, int]:
        # The second time only if they differ: the machine may be busy.
        async with at_once:
            for seconds in (1, 5):
                there, here = [await exit_code(name, case, seconds) for name in PROGRAMS]
                if here == there:
                    break
        return there, here

    async with asyncio.TaskGroup() as group:
        yield {case: group.create_task(run(case)) for case in (*SAME, *DIFFERENT)}


@pytest.mark.parametrize("case", SAME)
async def test_both_programs_end_with_the_same_code(outcomes: Outcomes, case: str) -> None:
    """What grpc-health-probe accepts, finds or refuses has the same exit code."""
    there, here = await outcomes[case]
    assert here == there


@pytest.mark.parametrize(("case", "codes"), DIFFERENT.items())
async def test_documented_differences(
    outcomes: Outcomes, case: str, codes: tuple[int, int]
) -> None:
    """UNAVAILABLE with a reason is not serving, seconds need no unit, and help is not a mistake."""
    assert await outcomes[case] == codes


if __name__ == "__main__":
    sys.exit(pytest.main([__file__]))

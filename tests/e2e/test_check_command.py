"""`ghealth check` as a command, against a server in a separate process."""

import json
import signal
import subprocess
from pathlib import Path

import pytest
import trustme

from tests.support import processes
from tests.support.certificates import CERT, KEY, pair_of

SERVICE = "s" * 200


def test_a_check_finds_its_server() -> None:
    """Flags are grpc-health-probe's, with one dash or two; by default it is this machine's."""
    with processes.server() as ghealth:
        times, port = processes.TIMES, ghealth.port
        for arguments, listen in (
            ([f"-addr=127.0.0.1:{port}", "-connect-timeout", "20s", "-rpc-timeout=20000ms"], ":1"),
            ([f"--addr=127.0.0.1:{port}", "--connect-timeout=20s", "--rpc-timeout", "20s"], ":1"),
            (times, f"[::]:{port}"),
        ):
            done = processes.run("check", "-service", "liveness", *arguments, LISTEN=listen)
            assert (done.returncode, done.stdout) == (0, "status: SERVING\n"), arguments


@pytest.mark.parametrize("trust", ["-tls-no-verify", "-tls-ca-cert={}"])
def test_grpc_understands_a_check(tmp_path: Path, trust: str) -> None:
    """A real gRPC server reads a long name, compression, metadata and client certificates."""
    authority = trustme.CA()
    files = {**pair_of(authority), "ca": authority.cert_pem.bytes()}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    cert, key, ca = (str(tmp_path / name) for name in (CERT, KEY, "ca"))
    settings = {"LISTEN": "off", "TLS_LISTEN": "127.0.0.1:0", "TLS_CLIENT_CA_FILE": ca}
    pair = {"TLS_CERT_FILE": cert, "TLS_KEY_FILE": key}
    services = json.dumps({SERVICE: "http://127.0.0.1:1/"})
    tls = ("-tls", f"-tls-client-cert={cert}", f"-tls-client-key={key}", trust.format(ca))
    with processes.server(SERVICES=services, **settings, **pair) as ghealth:
        done = ghealth.check("-gzip", "-rpc-header=a-bin: b", f"-service={SERVICE}", *tls)
    assert (done.returncode, done.stdout) == (4, "NOT_SERVING: connection refused\n")


def test_exit_codes_of_a_check() -> None:
    """Not serving is 4, also as an ALB; an RPC that failed is 3."""
    with processes.server(PROBE_URL="http://127.0.0.1:1/") as ghealth:
        assert ghealth.check("--service", "nobody").returncode == 3
        done = ghealth.check("--as", "alb")
        assert (done.returncode, done.stderr) == (4, "")
        assert "'connection refused'" in done.stdout


def test_watch_prints_changes_until_interrupted() -> None:
    """Each change is a line with its time; Ctrl-C ends with the code of the last one."""
    with processes.server(PROBE_URL="http://127.0.0.1:1/", DRAIN_DELAY="20") as ghealth:
        addr = f"--addr=127.0.0.1:{ghealth.port}"
        command = [*processes.COMMAND, "check", "--watch", addr, *processes.TIMES]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as watching:
            try:
                assert watching.stdout is not None
                line = watching.stdout.readline()
                assert line.endswith("Z NOT_SERVING: connection refused\n")
                watching.send_signal(signal.SIGINT)
                assert watching.wait(processes.TIMEOUT) == 4
            finally:
                watching.kill()

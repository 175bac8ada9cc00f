"""`ghealth check` as a command, against a server in a separate process."""

import signal
import subprocess

import pytest

from tests.support import processes
from tests.support.peers import nobody


@pytest.mark.parametrize("dashes", ["-", "--"])
def test_flags_of_grpc_health_probe(dashes: str) -> None:
    """The names are grpc-health-probe's, with one dash or two, `=` or not."""
    with processes.server() as ghealth:
        done = processes.run(
            "check",
            f"{dashes}addr=127.0.0.1:{ghealth.port}",
            f"{dashes}service",
            "liveness",
            f"{dashes}connect-timeout=20s",
            f"{dashes}rpc-timeout",
            "20000ms",
        )
    assert (done.returncode, done.stdout) == (0, "status: SERVING\n")


def test_a_check_asks_its_own_environments_ghealth() -> None:
    """Without --addr, a check asks this machine on the port of GHEALTH_LISTEN."""
    with processes.server() as ghealth:
        listen = f"[::]:{ghealth.port}"
        done = processes.run("check", "--service=liveness", *processes.TIMES, LISTEN=listen)
    assert (done.returncode, done.stdout) == (0, "status: SERVING\n")


def test_an_address_without_a_host_is_this_machine() -> None:
    """`-addr=:PORT`, the usual form for grpc-health-probe, works."""
    with processes.server() as ghealth:
        addr = f"-addr=:{ghealth.port}"
        done = processes.run("check", addr, "-service=liveness", *processes.TIMES)
    assert (done.returncode, done.stdout) == (0, "status: SERVING\n")


def test_exit_codes_of_a_check() -> None:
    """Not serving is 4, an RPC that failed 3, no connection 2."""
    with processes.server(PROBE_URL="http://127.0.0.1:1/") as ghealth:
        assert ghealth.check().returncode == 4
        assert ghealth.check("--service", "nobody").returncode == 3
    with nobody() as port:
        done = processes.run("check", "--addr", f"127.0.0.1:{port}", "--connect-timeout=200ms")
    assert done.returncode == 2


def test_a_check_as_an_alb() -> None:
    """The conclusion is the exit code and the last line; warnings are on stderr."""
    with processes.server(PROBE_URL="http://127.0.0.1:1/") as ghealth:
        done = ghealth.check("--as", "alb")
        assert done.returncode == 4
        assert done.stdout.splitlines()[-1] == "unhealthy"
        assert "'connection refused'" in done.stdout
        assert done.stderr == ""
        done = ghealth.check("--as=alb", "--path=/AWS.ALB/healthcheck", "--matcher=0-99")
        assert done.returncode == 0
        assert done.stdout.splitlines()[-1] == "healthy"
        assert done.stderr.startswith("ghealth: warning: the matcher 0-99 accepts every code")


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

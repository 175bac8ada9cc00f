"""`ghealth check` as a command, against a server in a separate process."""

import signal
import subprocess

from tests.support import processes
from tests.support.peers import nobody


def test_a_check_finds_its_server() -> None:
    """Flags are grpc-health-probe's, with one dash or two; by default it is this machine's."""
    with processes.server() as ghealth:
        times, port = processes.TIMES, ghealth.port
        for arguments, listen in (
            ([f"-addr=127.0.0.1:{port}", "-connect-timeout", "20s", "-rpc-timeout=20000ms"], ":1"),
            ([f"--addr=127.0.0.1:{port}", "--connect-timeout=20s", "--rpc-timeout", "20s"], ":1"),
            ([f"-addr=:{port}", *times], ":1"),
            (times, f"[::]:{port}"),
        ):
            done = processes.run("check", "-service", "liveness", *arguments, LISTEN=listen)
            assert (done.returncode, done.stdout) == (0, "status: SERVING\n"), arguments


def test_exit_codes_of_a_check() -> None:
    """Not serving is 4, an RPC that failed 3, no connection 2; the same as an ALB."""
    with processes.server(PROBE_URL="http://127.0.0.1:1/") as ghealth:
        assert ghealth.check().returncode == 4
        assert ghealth.check("--service", "nobody").returncode == 3
        done = ghealth.check("--as", "alb")
        assert (done.returncode, done.stderr) == (4, "")
        assert "'connection refused'" in done.stdout
        assert done.stdout.splitlines()[-1] == "unhealthy"
        done = ghealth.check("--as=alb", "--path=/AWS.ALB/healthcheck", "--matcher=0-99")
        assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "healthy")
        assert done.stderr.startswith("ghealth: warning: the matcher 0-99 accepts every code")
    with nobody() as port:
        done = processes.run("check", "--addr", f"127.0.0.1:{port}", "--connect-timeout=200ms")
    assert done.returncode == 2


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

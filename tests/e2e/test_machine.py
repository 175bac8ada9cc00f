"""ghealth on a machine without free CPU, memory, descriptors or disk space."""

import asyncio
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest
from grpc_health.v1 import health_pb2

from tests.support import processes, wire
from tests.support.gateway import SICK, free_port, gateway
from tests.support.stopwatch import Stopwatch

SERVING = b"\0\0\0\0\2\x08\1"
IN_TIME = 1.0


async def asks(times: int, ghealth: processes.Server) -> list[float]:
    """Check on new connections; return how long the correct answers took."""
    took = []
    for _ in range(times):
        taking = Stopwatch(ghealth.process.pid)
        reply = await wire.call(ghealth.port, wire.EMPTY_MESSAGE)
        assert (reply.code, reply.data) == (0, SERVING)
        took.append(taking.seconds)
    return took


@contextmanager
def busy() -> Iterator[None]:
    """Keep a core busy."""
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as loop:
        try:
            yield
        finally:
            loop.kill()


async def test_without_cpu_answers_are_right_and_in_time() -> None:
    """With a busy loop on every core, each Check is answered correctly within a second."""
    with ExitStack() as stack:
        envoy, _ = stack.enter_context(gateway())
        ghealth = stack.enter_context(processes.server(PROBE_URL=envoy.url))
        for _ in range(os.cpu_count() or 1):
            stack.enter_context(busy())
        took = []
        for _ in range(50):
            started = time.monotonic()
            (without_the_loops,) = await asks(1, ghealth)
            took.append(time.monotonic() - started)
            assert without_the_loops < IN_TIME
        # Most of them: other work of this machine may delay one.
        assert statistics.median(took) < IN_TIME


@contextmanager
def memory_of(mib: int) -> Iterator[tuple[str, ...]]:
    """Create a control group with a limit; yield the command that runs another in it."""
    first, second = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")
    version_1 = first.is_dir()
    group = (first if version_1 else second) / f"ghealth-test-{os.getpid()}"
    limit = "memory.limit_in_bytes" if version_1 else "memory.max"
    try:
        group.mkdir()
        (group / limit).write_text(str(mib << 20))
    except OSError:
        assert "CI" not in os.environ, "CI must be able to make a control group"
        pytest.skip("no control groups on this machine")
    try:
        yield ("sh", "-c", f'echo $$ > {group}/cgroup.procs && exec "$0" "$@"')
    finally:
        group.rmdir()


async def test_in_96_mib_it_serves_checks_and_watches() -> None:
    """Under a limit of 96 MiB it survives 300 checks and 100 watches."""
    with (
        memory_of(96) as limited,
        gateway() as (envoy, _),
        processes.server(*limited, PROBE_URL=envoy.url) as ghealth,
    ):
        together = asyncio.Barrier(5)
        connections = [wire.watching(ghealth.port, 20, together=together) for _ in range(5)]
        await asyncio.gather(*connections)
        await asks(300, ghealth)
        assert ghealth.process.poll() is None
        assert ghealth.ended_by(signal.SIGINT) == 0


async def test_with_64_descriptors_it_serves() -> None:
    """With 64 descriptors and 80 silent connections at once, each Check gets the correct answer."""
    limited = ("sh", "-c", 'ulimit -n 64 && exec "$0" "$@"')
    with gateway() as (envoy, _), processes.server(*limited, PROBE_URL=envoy.url) as ghealth:
        opened = [asyncio.open_connection("127.0.0.1", ghealth.port) for _ in range(80)]
        silent = await asyncio.gather(*opened)
        took = await asks(100, ghealth)
        # Silent connections are cut within two seconds, and gRPC accepts again once a second.
        assert max(took) < 2 + 1 + IN_TIME
        assert took[-1] < IN_TIME
        for _, writer in silent:
            writer.close()


def test_a_full_disk_under_the_log_changes_nothing() -> None:
    """With a standard output that accepts nothing more, it answers, and ends on a signal."""
    with Path("/dev/full").open("w") as full, gateway() as (envoy, agent):
        port = free_port()
        agent.state = SICK
        listen = {"LISTEN": f"127.0.0.1:{port}", "ADMIN_LISTEN": "off"}
        settings = processes.environment(PROBE_URL=envoy.url, **listen)
        with subprocess.Popen(processes.COMMAND, stdout=full, env=settings) as process:
            done = processes.run("check", "--addr", f"127.0.0.1:{port}", *processes.TIMES)
            process.send_signal(signal.SIGINT)
            assert process.wait(processes.TIMEOUT) == 0
    assert done.returncode == 4


def test_a_read_only_file_system_without_tmp_is_enough() -> None:
    """Nothing is written anywhere: with a read-only root and no /tmp it serves."""
    script = "mount -o remount,bind,ro / && ! touch / 2>/dev/null"
    enter = processes.in_namespaces("--mount", script=script)
    with (
        gateway() as (envoy, _),
        processes.server(*enter, "env", "TMPDIR=/gone", PROBE_URL=envoy.url) as ghealth,
    ):
        assert ghealth.check().stdout == "status: SERVING\n"
        assert ghealth.ended_by(signal.SIGINT) == 0


async def test_liveness_is_true_through_all_of_it() -> None:
    """While the gateway hangs and the process was stopped for a while, `liveness` is SERVING."""
    request = health_pb2.HealthCheckRequest(service="liveness").SerializeToString()
    with gateway() as (envoy, agent), processes.server(PROBE_URL=envoy.url) as ghealth:
        agent.state = "silent"
        hanging = asyncio.create_task(wire.call(ghealth.port, wire.EMPTY_MESSAGE))
        for stops in (False, True, False):
            if stops:
                ghealth.process.send_signal(signal.SIGSTOP)
                await asyncio.sleep(0.5)
                ghealth.process.send_signal(signal.SIGCONT)
            reply = await wire.call(ghealth.port, wire.framed(request))
            assert (reply.code, reply.data) == (0, SERVING)
        assert (await hanging).code == 14
        with suppress(ProcessLookupError):
            ghealth.process.send_signal(signal.SIGTERM)
        reply = await wire.call(ghealth.port, wire.framed(request))
        assert (reply.code, reply.data) == (0, SERVING)
        ghealth.process.send_signal(signal.SIGTERM)

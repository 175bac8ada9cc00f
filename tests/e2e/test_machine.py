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

import pytest

from tests.support import processes, wire
from tests.support.gateway import SILENT, Gateway, free_port, gateway
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


@pytest.fixture(scope="module")
def envoy() -> Iterator[Gateway]:
    """A gateway that is ready."""
    with gateway() as (envoy, _):
        yield envoy


async def test_without_cpu_answers_are_right_and_in_time(envoy: Gateway) -> None:
    """With a busy loop on every core, each Check is answered correctly within a second."""
    with ExitStack() as stack:
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


LIMITS = {"memory.limit_in_bytes": 96 << 20, "memory.max": 96 << 20}


async def test_in_96_mib_it_serves_checks_and_watches(envoy: Gateway) -> None:
    """Under a limit of 96 MiB it survives 300 checks and 100 watches."""
    with (
        processes.control_group("memory", LIMITS) as limited,
        processes.server(*limited.prefix, PROBE_URL=envoy.url) as ghealth,
    ):
        together = asyncio.Barrier(5)
        connections = [wire.watching(ghealth.port, 20, together=together) for _ in range(5)]
        await asyncio.gather(*connections)
        await asks(300, ghealth)
        assert ghealth.process.poll() is None
        assert ghealth.ended_by(signal.SIGINT) == 0


async def test_with_64_descriptors_it_serves(envoy: Gateway) -> None:
    """With 64 descriptors and 80 silent connections at once, each Check gets the correct answer."""
    limited = processes.limiting("-n 64")
    with (
        processes.server(*limited, PROBE_URL=envoy.url) as ghealth,
        wire.silent(ghealth.port, 80),
    ):
        took = await asks(100, ghealth)
        # Silent connections are cut within two seconds, and gRPC accepts again once a second.
        assert max(took) < 2 + 1 + IN_TIME
        assert took[-1] < IN_TIME


@pytest.fixture
def full_pipe() -> Iterator[str]:
    """The path of a pipe that is full, and that nothing reads."""
    reader, writer = os.pipe2(os.O_NONBLOCK)
    with suppress(BlockingIOError):
        while True:
            os.write(writer, b"x" * 4096)
    os.set_blocking(writer, True)
    yield f"/proc/{os.getpid()}/fd/{writer}"
    os.close(reader)
    os.close(writer)


@pytest.mark.parametrize("output", ["full pipe", "/dev/full", "&-"])
def test_a_log_that_nobody_reads_delays_no_answer(full_pipe: str, output: str) -> None:
    """Trap 18: with a pipe or a disk that is full, or closed, it answers and ends on a signal."""
    port = free_port()
    listen = {"LISTEN": f"127.0.0.1:{port}", "ADMIN_LISTEN": "off"}
    settings = processes.environment(PROBE_URL="http://127.0.0.1:1/", **listen)
    place = output.replace("full pipe", full_pipe)
    command = ("sh", "-c", f'exec "$0" "$@" >{place}', *processes.COMMAND)
    with subprocess.Popen(command, env=settings) as process:
        done = processes.run("check", "--addr", f"127.0.0.1:{port}", *processes.TIMES)
        process.send_signal(signal.SIGINT)
        assert process.wait(processes.TIMEOUT) == 0
    assert done.returncode == 4


def test_a_read_only_file_system_without_tmp_is_enough(envoy: Gateway) -> None:
    """Nothing is written anywhere: with a read-only root and no /tmp it serves."""
    script = "mount -o remount,bind,ro / && ! touch / 2>/dev/null"
    enter = processes.in_namespaces("--mount", script=script)
    with processes.server(*enter, "env", "TMPDIR=/gone", PROBE_URL=envoy.url) as ghealth:
        assert ghealth.check().stdout == "status: SERVING\n"
        assert ghealth.ended_by(signal.SIGINT) == 0


async def test_liveness_is_true_through_all_of_it() -> None:
    """While the gateway hangs and the process was stopped for a while, `liveness` is SERVING."""
    with gateway() as (envoy, agent), processes.server(PROBE_URL=envoy.url) as ghealth:

        async def is_alive() -> bool:
            reply = await wire.call(ghealth.port, wire.framed(b"\x0a\x08liveness"))
            return (reply.code, reply.data) == (0, SERVING)

        agent.state = SILENT
        hanging = asyncio.create_task(wire.call(ghealth.port, wire.EMPTY_MESSAGE))
        assert await is_alive()
        ghealth.process.send_signal(signal.SIGSTOP)
        await asyncio.sleep(0.5)
        ghealth.process.send_signal(signal.SIGCONT)
        assert await is_alive()
        ghealth.process.send_signal(signal.SIGTERM)
        assert await is_alive()
        assert (await hanging).code == 14
        ghealth.process.send_signal(signal.SIGTERM)

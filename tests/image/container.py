"""Runs the image by podman, with the limits of a gateway pod."""

import itertools
import json
import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from tests.image.build import IMAGE, environment, tool
from tests.support.gateway import wait_until

TIMEOUT: Final = 120.0
"""Seconds; on an idle machine one is enough."""

_CONFINED: Final = (
    "--pull=never",
    "--read-only",
    "--read-only-tmpfs=false",
    "--cap-drop=all",
    "--security-opt=no-new-privileges",
    "--pids-limit=64",
    "--log-driver=k8s-file",
)

_THE_TESTS_NAMESPACE: Final = "host"

_numbers = itertools.count()


def podman(*arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run podman to its end."""
    return subprocess.run(
        [*tool("podman"), *arguments],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )


def run(*arguments: str, options: tuple[str, ...] = ()) -> "subprocess.CompletedProcess[str]":
    """Run the image to its end, as `docker run --rm IMAGE …` does.

    Args:
        arguments: What follows the image.
        options: Further ones of podman's.
    """
    network = f"--network={_THE_TESTS_NAMESPACE}"
    return podman(
        "run", "--rm", "--no-healthcheck", network, *_CONFINED, *options, IMAGE, *arguments
    )


class Container:
    """A running container.

    Args:
        name: Its name.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def exec(self, *command: str) -> "subprocess.CompletedProcess[str]":
        """Run a command in it, as `kubectl exec` does."""
        return podman("exec", self.name, *command)

    def healthcheck(self) -> int:
        """Run the image's HEALTHCHECK and return its exit code."""
        return podman("healthcheck", "run", self.name).returncode

    def signal(self, name: str) -> None:
        """Send a signal to its process number 1."""
        _succeed(podman("kill", "--signal", name, self.name))

    def exit_code(self) -> int:
        """Wait for its end and return the exit code."""
        return int(podman("wait", self.name).stdout)

    def inspect(self) -> Any:
        """Return podman's data about it."""
        return json.loads(podman("inspect", self.name).stdout)[0]

    def process(self) -> dict[str, str]:
        """Return the kernel's status of its process."""
        status = Path(f"/proc/{self.inspect()['State']['Pid']}/status").read_text()
        return dict(re.findall(r"^(\w+):[ \t]*(.*)$", status, re.MULTILINE))

    def memory_limit(self) -> int:
        """Return the memory limit, in bytes."""
        groups = Path(f"/proc/{self.inspect()['State']['Pid']}/cgroup").read_text()
        if version_1 := re.search(r"^\d+:memory:/(.*)$", groups, re.MULTILINE):
            file = f"memory/{version_1[1]}/memory.limit_in_bytes"
        else:
            file = f"{groups.strip().removeprefix('0::/')}/memory.max"
        return int((Path("/sys/fs/cgroup") / file).read_text())

    def lines(self) -> list[dict[str, Any]]:
        """Return the lines of its log."""
        return [json.loads(line) for line in podman("logs", self.name).stdout.splitlines()]

    def line(self, event: str) -> dict[str, Any]:
        """Wait for a line about an event.

        Raises:
            RuntimeError: If there is none; the text is what there is.
        """

        def found() -> list[dict[str, Any]]:
            return [line for line in self.lines() if line["event"] == event]

        def ended() -> bool:
            return not self.inspect()["State"]["Running"]

        wait_until(lambda: bool(found()) or ended(), TIMEOUT)
        if not found():
            raise RuntimeError(f"no line about {event}: {podman('logs', self.name)}")
        return found()[0]


def _succeed(done: "subprocess.CompletedProcess[str]") -> None:
    if done.returncode:
        raise RuntimeError(f"{' '.join(done.args)} failed:\n{done.stderr}")


@contextmanager
def container(
    *options: str, memory: int = 96, network: str = _THE_TESTS_NAMESPACE, **variables: str
) -> Iterator[Container]:
    """Run the image until the end of the block, from when it listens.

    Args:
        options: Further ones of podman's.
        memory: The limit, in MiB.
        network: `none`, or that of the tests.
        variables: Settings, without the prefix of their names.
    """
    name = f"ghealth-{os.getpid()}-{next(_numbers)}"
    settings = [f"--env=GHEALTH_{variable}={value}" for variable, value in variables.items()]
    limits = [f"--memory={memory}m", f"--memory-swap={memory}m", f"--network={network}"]
    # The timers of a HEALTHCHECK are systemd's; the tests run it themselves.
    here = ["--detach", f"--name={name}", "--health-interval=disable"]
    started = podman("run", *here, *_CONFINED, *limits, *settings, *options, IMAGE)
    try:
        _succeed(started)
        under_way = Container(name)
        under_way.line("started")
        yield under_way
    finally:
        podman("rm", "--force", "--time=0", name)

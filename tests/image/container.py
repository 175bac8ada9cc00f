"""Runs the image by podman, with the limits of a gateway pod."""

import json
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from subprocess import CompletedProcess
from typing import Any, Final

from tests.image import build
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


def podman(*arguments: str) -> CompletedProcess[str]:
    """Run podman to its end."""
    return build.run(*build.tool("podman"), *arguments, timeout=TIMEOUT)


def run(*arguments: str, options: tuple[str, ...] = ()) -> CompletedProcess[str]:
    """Run the image to its end, as `docker run --rm IMAGE …` does.

    Args:
        arguments: What follows the image.
        options: Further ones of podman's.
    """
    command = ("run", "--rm", "--no-healthcheck", "--network=host", *_CONFINED, *options)
    return podman(*command, build.IMAGE, *arguments)


@dataclass(frozen=True)
class Container:
    """A running container.

    Args:
        name: Its name.
    """

    name: str

    def exec(self, *command: str) -> CompletedProcess[str]:
        """Run a command in it, as `kubectl exec` does."""
        return podman("exec", self.name, *command)

    def signal(self, name: str) -> None:
        """Send a signal to its process number 1."""
        assert podman("kill", "--signal", name, self.name).returncode == 0

    def exit_code(self) -> int:
        """Wait for its end and return the exit code."""
        return int(podman("wait", self.name).stdout)

    def state(self) -> dict[str, Any]:
        """Return podman's data about its process."""
        (found,) = json.loads(podman("inspect", self.name).stdout)
        return dict(found["State"])

    def events(self) -> list[str]:
        """Return the events in its log."""
        return [json.loads(it)["event"] for it in podman("logs", self.name).stdout.splitlines()]

    def wait_for(self, event: str) -> None:
        """Wait for a line about an event."""
        wait_until(lambda: event in self.events() or not self.state()["Running"], TIMEOUT)
        assert event in self.events(), podman("logs", self.name)


@contextmanager
def container(
    *options: str, memory: int = 96, network: str = "host", **variables: str
) -> Iterator[Container]:
    """Run the image until the end of the block, from when it listens.

    Args:
        options: Further ones of podman's.
        memory: The limit, in MiB.
        network: `none`, or `host` for that of the tests.
        variables: Settings, without the prefix of their names.
    """
    name = f"ghealth-{uuid.uuid4()}"
    settings = [f"--env=GHEALTH_{variable}={value}" for variable, value in variables.items()]
    limits = [f"--memory={memory}m", f"--memory-swap={memory}m", f"--network={network}"]
    # The timers of a HEALTHCHECK are systemd's; the tests run it themselves.
    here = ["--detach", f"--name={name}", "--health-interval=disable"]
    started = podman("run", *here, *_CONFINED, *limits, *settings, *options, build.IMAGE)
    try:
        assert started.returncode == 0, started.stderr
        under_way = Container(name)
        under_way.wait_for("started")
        yield under_way
    finally:
        podman("rm", "--force", "--time=0", name)

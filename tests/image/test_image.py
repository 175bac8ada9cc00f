"""The image that ships, run as a gateway pod runs it: bare, confined, beside a real Envoy."""

import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from importlib import metadata
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from ghealth import __version__
from ghealth.health import Status
from ghealth.server.limits import MAX_WATCHES_PER_CONNECTION
from tests.image import container as containers
from tests.image.build import IMAGE, ROOT, RUN_BASE, SOURCE
from tests.image.container import TIMEOUT, Container, container, podman
from tests.support.gateway import ENVOY, READY, SICK, Agent, gateway, listens, wait_until

LOCK = ROOT / "requirements" / "image.txt"
USER = "65532"
LABELS = ("revision", "version", "source")
CHECK = ("ghealth", "check")


@pytest.fixture
def agent() -> Iterator[Agent]:
    """Run a real Envoy with the readiness listener, where Istio has it."""
    with gateway(15021, 15020) as (_, agent):
        yield agent


@pytest.fixture
def ghealth() -> Iterator[Container]:
    """Run the image; each check of it probes the gateway."""
    with container(CACHE_TTL="0") as ghealth:
        yield ghealth


@pytest.fixture(scope="module")
def code() -> Iterator[Path]:
    """Mount the image, and return the folder of ghealth and its libraries."""
    yield Path(podman("image", "mount", IMAGE).stdout.strip()) / "opt" / "ghealth"
    podman("image", "unmount", IMAGE)


def inspected(image: str) -> Any:
    return json.loads(podman("inspect", image).stdout)[0]


def test_the_image_says_what_it_is() -> None:
    """It has a numeric user, version, revision, source and the port; one layer on its base."""
    image, base = inspected(IMAGE), inspected(RUN_BASE)
    configuration = image["Config"]
    revision = subprocess.check_output(["git", "rev-parse", "HEAD"], cwd=ROOT, text=True).strip()
    assert configuration["User"] == f"{USER}:{USER}"
    assert configuration["Entrypoint"] == ["ghealth"]
    assert configuration["ExposedPorts"] == {"25021/tcp": {}}
    labels = [configuration["Labels"][f"org.opencontainers.image.{name}"] for name in LABELS]
    assert labels[0].removesuffix("-dirty") == revision
    assert labels[1:] == [__version__, SOURCE]
    assert len(image["RootFS"]["Layers"]) == len(base["RootFS"]["Layers"]) + 1


def test_it_finds_its_code_whatever_the_environment(tmp_path: Path) -> None:
    """PYTHONPATH, PYTHONHOME and an injector's modules of the same names change nothing."""
    for name in ("ghealth", "grpc", "httpx", "sitecustomize"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the wrong module')\n")
    tmp_path.chmod(0o755)
    environment = ("PYTHONPATH=/injected", "PYTHONHOME=/injected", "PYTHONSAFEPATH=")
    variables = [f"--env={variable}" for variable in environment]
    options = (f"--volume={tmp_path}:/injected:ro", "--workdir=/injected", *variables)
    done = containers.run("settings", options=options)
    assert (done.returncode, done.stderr) == (0, "")
    with container(*options) as ghealth:
        assert ghealth.exec(*CHECK, "--service=liveness").returncode == 0
    assert not any("PYTHON" in variable for variable in inspected(IMAGE)["Config"]["Env"])


def test_it_contains_what_is_locked_and_no_more(code: Path) -> None:
    """Scanners find each package of the lock with its version, ghealth itself, and no other."""
    locked = dict(re.findall(r"^([\w.-]+)==([\w.]+)", LOCK.read_text(), re.MULTILINE))
    found = metadata.distributions(path=[str(code)])
    packages = {it.name.lower().replace("_", "-"): it.version for it in found}
    assert packages == locked | {"ghealth": __version__}
    assert not {file.suffix for file in code.rglob("*")} & {".pyi", ".c", ".proto"}


def test_every_module_is_compiled(code: Path) -> None:
    """Each file has byte code of this Python, which is used without a check of the source."""
    assert (code / "../../usr/bin/python3.13").exists()
    for file in code.rglob("*.py"):
        compiled = file.parent / "__pycache__" / f"{file.stem}.cpython-313.pyc"
        assert compiled.read_bytes()[4:8] == b"\1\0\0\0", file


@pytest.mark.parametrize(
    ("state", "code", "verdict"),
    [(READY, 0, "healthy"), (SICK, 4, "Health checks failed with these codes: [14]")],
)
def test_beside_a_gateway_it_tells_the_truth(
    agent: Agent, ghealth: Container, state: str, code: int, verdict: str
) -> None:
    """A client and an ALB learn the gateway's state: in the container, from another and outside."""
    agent.state = state
    outside = subprocess.run([Path(sys.prefix) / "bin" / "ghealth", "check"], check=False)
    assert outside.returncode == code
    assert ghealth.exec(*CHECK).returncode == containers.run("check").returncode == code
    for done in (ghealth.exec(*CHECK, "--as", "alb"), containers.run("check", "--as", "alb")):
        assert done.returncode == code
        assert verdict in done.stdout


def test_the_compose_files_gateway_turns_sick_and_well(ghealth: Container) -> None:
    """deploy/local: POST to Envoy's admin port makes the gateway unready, and ready again."""
    config = ROOT / "deploy" / "local" / "envoy.yaml"
    command = [str(ENVOY), "--config-path", str(config), "--log-level", "error"]
    with subprocess.Popen(command) as envoy, ExitStack() as stack:
        stack.callback(envoy.kill)
        assert wait_until(lambda: listens(15021) and listens(15000), TIMEOUT)
        for verb, exit_code in (("ok", 0), ("fail", 4), ("ok", 0)):
            done = httpx.post(f"http://127.0.0.1:15000/healthcheck/{verb}", trust_env=False)
            assert done.status_code == 200
            assert ghealth.exec(*CHECK).returncode == exit_code


def test_the_image_is_a_command() -> None:
    """`docker run IMAGE` with other words runs them, with their output and exit codes."""
    assert containers.run("check", "--connect-timeout=500ms").returncode == 2
    assert containers.run("check", "--nonsense").returncode == 1
    assert "GHEALTH_PROBE_URL" in containers.run("settings").stdout
    with container():
        assert containers.run("check", "--service=unknown").returncode == 3


def test_mistakes_are_one_line_and_an_exit_code() -> None:
    """A wrong setting ends it with 1, a taken port with 2, each with one line."""
    mistaken = containers.run(options=("--env=GHEALTH_CACHE_TTL=soon",))
    with container():
        taken = containers.run()
    for done, code, named in ((mistaken, 1, "GHEALTH_CACHE_TTL"), (taken, 2, "25021")):
        assert (done.returncode, done.stderr.count("\n")) == (code, 1)
        assert named in done.stderr


def test_it_is_process_number_1_without_privileges(ghealth: Container) -> None:
    """Nothing stands between the runtime and ghealth; it has no privileges."""
    status = Path(f"/proc/{ghealth.state()['Pid']}/status").read_text()
    process = dict(re.findall(r"^(\w+):[ \t]*(.*)$", status, re.MULTILINE))
    assert process["NSpid"].split()[-1] == "1"
    assert process["Uid"].split() == process["Gid"].split() == [USER] * 4
    assert {int(process[f"Cap{kind}"], 16) for kind in ("Eff", "Prm", "Bnd", "Amb")} == {0}


def test_it_drains_on_sigterm_and_ends_with_0(agent: Agent) -> None:
    """SIGTERM reaches process number 1: it drains, though the gateway is ready, and ends with 0."""
    assert agent.state == READY
    with container(DRAIN_DELAY="15") as ghealth:
        ghealth.signal("TERM")
        ghealth.wait_for("draining")
        assert ghealth.exec(*CHECK).returncode == 4
        assert ghealth.exec(*CHECK, "--service=liveness").returncode == 0
        assert ghealth.exit_code() == 0
        assert ghealth.events()[-1] == "stopped"


def test_sigint_skips_the_drain_and_a_second_signal_ends_it() -> None:
    """SIGINT ends it with 0 without the delay; a second SIGTERM at once with 128 + 15."""
    with container(DRAIN_DELAY="3600") as ghealth:
        ghealth.signal("INT")
        assert ghealth.exit_code() == 0
    with container(DRAIN_DELAY="3600") as ghealth:
        ghealth.signal("TERM")
        ghealth.wait_for("draining")
        ghealth.signal("TERM")
        assert ghealth.exit_code() == 128 + signal.SIGTERM


def test_the_healthcheck_is_about_the_process_alone(ghealth: Container) -> None:
    """HEALTHCHECK passes while the gateway is down, and fails when ghealth does not answer."""
    healthcheck = ("healthcheck", "run", ghealth.name)
    assert ghealth.exec(*CHECK).returncode == 4
    assert podman(*healthcheck).returncode == 0
    ghealth.signal("STOP")
    assert podman(*healthcheck).returncode == 1
    ghealth.signal("CONT")


def test_without_a_network_it_starts() -> None:
    """With only a loopback interface it serves, and reports that the gateway is not reachable."""
    with container(network="none") as ghealth:
        assert ghealth.exec(*CHECK, "--service=liveness").returncode == 0
        verdict = ghealth.exec(*CHECK, "--as", "alb")
        assert verdict.returncode == 4
        assert "connection refused" in verdict.stdout


def test_nothing_is_written(agent: Agent) -> None:
    """Where it may write, it does not: only the runtime's files are left."""
    mounted = {"/dev", "/etc", "/proc", "/run", "/sys"}
    with container("--read-only=false", "--user=0:0", CACHE_TTL="0") as ghealth:
        assert ghealth.exec(*CHECK).returncode == 0
        agent.state = SICK
        assert ghealth.exec(*CHECK, "--as", "alb").returncode == 4
        ghealth.signal("INT")
        assert ghealth.exit_code() == 0
        changed = [line.split()[1] for line in podman("diff", ghealth.name).stdout.splitlines()]
    assert {"/".join(path.split("/")[:2]) for path in changed} <= mounted


@pytest.mark.parametrize(("memory", "watchers"), [(64, 20), (96, 100)])
def test_memory_is_enough(agent: Agent, memory: int, watchers: int) -> None:
    """In 64 MiB it serves checks and a few watches, in 96 MiB all that it allows."""
    request = health_pb2.HealthCheckRequest()
    own = [("grpc.use_local_subchannel_pool", 1)]
    with container(memory=memory, CACHE_TTL="0") as ghealth, ExitStack() as stack:
        watches = []
        for number in range(watchers):
            if number % MAX_WATCHES_PER_CONNECTION == 0:
                channel = stack.enter_context(grpc.insecure_channel("127.0.0.1:25021", own))
                stub = health_pb2_grpc.HealthStub(channel)
            watches.append(stub.Watch(request, timeout=TIMEOUT))
        assert {next(watch).status for watch in watches} == {Status.SERVING}
        for _ in range(300):
            assert stub.Check(request, timeout=TIMEOUT).status == Status.SERVING
        agent.state = SICK
        assert {next(watch).status for watch in watches} == {Status.NOT_SERVING}
        limit = podman("stats", "--no-stream", "--format={{.MemLimit}}", ghealth.name).stdout
        assert int(limit) == memory << 20
        state = ghealth.state()
        assert (state["Running"], state["OOMKilled"]) == (True, False)

"""The image that ships, run as a gateway pod runs it: bare, confined, beside a real Envoy."""

import http.client
import json
import re
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from ghealth import __version__
from ghealth.health import Status
from ghealth.server.limits import MAX_WATCHES_PER_CONNECTION
from tests.image import container as containers
from tests.image.build import IMAGE, ROOT, RUN_BASE, SOURCE
from tests.image.container import TIMEOUT, container, podman
from tests.support.gateway import ENVOY, SICK, Agent, listens, wait_until

GHEALTH = Path(sys.prefix) / "bin" / "ghealth"
LOCK = ROOT / "requirements" / "image.txt"
USER = "65532"
AS_ALB = ("ghealth", "check", "--as", "alb")
MIB = 1024 * 1024


def inspected(image: str) -> Any:
    return json.loads(podman("inspect", image).stdout)[0]


def python(script: str) -> "subprocess.CompletedProcess[str]":
    return containers.run("-c", script, options=("--entrypoint=python3",))


def test_the_image_says_what_it_is() -> None:
    """It has a numeric user, version, revision, source and the port; one layer on its base."""
    image, base = inspected(IMAGE), inspected(RUN_BASE)
    configuration = image["Config"]
    labels = configuration["Labels"]
    revision = subprocess.check_output(["git", "rev-parse", "HEAD"], cwd=ROOT, text=True).strip()
    assert configuration["User"] == f"{USER}:{USER}"
    assert configuration["Entrypoint"] == ["ghealth"]
    assert configuration["ExposedPorts"] == {"25021/tcp": {}}
    assert labels["org.opencontainers.image.version"] == __version__
    assert labels["org.opencontainers.image.revision"].removesuffix("-dirty") == revision
    assert labels["org.opencontainers.image.source"] == SOURCE
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
    with container(*options, CACHE_TTL="0") as ghealth:
        assert ghealth.exec("ghealth", "check", "--service=liveness").returncode == 0
    assert not any("PYTHON" in variable for variable in inspected(IMAGE)["Config"]["Env"])


_PACKAGES = """
import importlib.metadata as metadata, json, pathlib
found = {it.metadata["Name"]: it.version for it in metadata.distributions(path=["/opt/ghealth"])}
files = pathlib.Path("/opt/ghealth").rglob("*")
left = [str(file) for file in files if file.suffix in {".pyi", ".c", ".proto"}]
print(json.dumps([found, left]))
"""


def test_it_contains_what_is_locked_and_no_more() -> None:
    """Scanners find each package of the lock with its version, ghealth itself, and no other."""
    found, left = json.loads(python(_PACKAGES).stdout)
    assert left == []
    locked = dict(re.findall(r"^([\w.-]+)==([\w.]+)", LOCK.read_text(), re.MULTILINE))
    packages = {name.lower().replace("_", "-"): version for name, version in found.items()}
    assert packages == locked | {"ghealth": __version__}


def test_beside_a_gateway_it_tells_the_truth(agent: Agent) -> None:
    """A grpc client and an ALB learn the gateway's state, from inside and from outside."""
    with container(CACHE_TTL="0") as ghealth:
        assert ghealth.exec("ghealth", "check").returncode == 0
        assert ghealth.exec(*AS_ALB).returncode == 0
        assert subprocess.run([GHEALTH, "check"], check=False).returncode == 0
        agent.state = SICK
        assert ghealth.exec("ghealth", "check").returncode == 4
        verdict = ghealth.exec(*AS_ALB)
        assert verdict.returncode == 4
        assert "Health checks failed with these codes: [14]" in verdict.stdout
        assert subprocess.run([GHEALTH, "check"], check=False).returncode == 4


def test_the_compose_files_gateway_turns_sick_and_well() -> None:
    """deploy/local: POST to Envoy's admin port makes the gateway unready, and ready again."""
    config = ROOT / "deploy" / "local" / "envoy.yaml"
    with (
        container(CACHE_TTL="0") as ghealth,
        subprocess.Popen([ENVOY, "--config-path", config, "--log-level", "error"]) as envoy,
    ):
        try:
            assert wait_until(lambda: listens(15021) and listens(15000), TIMEOUT)
            for command, exit_code in (("ok", 0), ("fail", 4), ("ok", 0)):
                admin = http.client.HTTPConnection("127.0.0.1", 15000, timeout=TIMEOUT)
                admin.request("POST", f"/healthcheck/{command}")
                assert admin.getresponse().status == 200
                admin.close()
                assert ghealth.exec("ghealth", "check").returncode == exit_code
        finally:
            envoy.kill()


def test_the_image_is_a_command(agent: Agent) -> None:
    """`docker run IMAGE check …` and the other commands work, with their exit codes."""
    assert containers.run("check", "--connect-timeout=500ms").returncode == 2
    with container(CACHE_TTL="0"):
        assert containers.run("check").returncode == 0
        agent.state = SICK
        assert containers.run("check").returncode == 4
        assert containers.run("check", "--as", "alb").returncode == 4
        assert containers.run("check", "--service=unknown").returncode == 3
    assert containers.run("check", "--nonsense").returncode == 1
    assert "GHEALTH_PROBE_URL" in containers.run("settings").stdout


def test_mistakes_are_one_line_and_an_exit_code() -> None:
    """A wrong setting ends it with 1, a taken port with 2, each with one line."""
    mistaken = containers.run(options=("--env=GHEALTH_CACHE_TTL=soon",))
    assert (mistaken.returncode, mistaken.stderr.count("\n")) == (1, 1)
    assert "GHEALTH_CACHE_TTL" in mistaken.stderr
    with container():
        taken = containers.run()
    assert (taken.returncode, taken.stderr.count("\n")) == (2, 1)
    assert "25021" in taken.stderr


def test_it_is_process_number_1_without_privileges() -> None:
    """Nothing stands between the runtime and ghealth; it has no privileges."""
    with container() as ghealth:
        process = ghealth.process()
        assert process["NSpid"].split()[-1] == "1"
        assert process["Uid"].split() == [USER] * 4
        assert process["Gid"].split() == [USER] * 4
        assert {int(process[f"Cap{kind}"], 16) for kind in ("Eff", "Prm", "Bnd", "Amb")} == {0}


def test_it_drains_on_sigterm_and_ends_with_0(agent: Agent) -> None:
    """SIGTERM reaches process number 1: it drains, though the gateway is ready, and ends with 0."""
    assert agent.state != SICK
    with container(DRAIN_DELAY="15") as ghealth:
        ghealth.signal("TERM")
        ghealth.line("draining")
        assert ghealth.exec("ghealth", "check").returncode == 4
        assert ghealth.exec("ghealth", "check", "--service=liveness").returncode == 0
        assert ghealth.exit_code() == 0
        assert ghealth.lines()[-1]["event"] == "stopped"


def test_sigint_skips_the_drain_and_a_second_signal_ends_it() -> None:
    """SIGINT ends it with 0 without the delay; a second SIGTERM at once with 128 + 15."""
    with container(DRAIN_DELAY="3600") as ghealth:
        ghealth.signal("INT")
        assert ghealth.exit_code() == 0
    with container(DRAIN_DELAY="3600") as ghealth:
        ghealth.signal("TERM")
        ghealth.line("draining")
        ghealth.signal("TERM")
        assert ghealth.exit_code() == 128 + signal.SIGTERM


def test_the_healthcheck_is_about_the_process_alone() -> None:
    """HEALTHCHECK passes while the gateway is down, and fails when ghealth does not answer."""
    with container() as ghealth:
        assert ghealth.exec("ghealth", "check").returncode == 4
        assert ghealth.healthcheck() == 0
        ghealth.signal("STOP")
        assert ghealth.healthcheck() == 1
        ghealth.signal("CONT")


def test_without_a_network_it_starts() -> None:
    """With only a loopback interface it serves, and reports that the gateway is not reachable."""
    with container(network="none") as ghealth:
        assert ghealth.exec("ghealth", "check", "--service=liveness").returncode == 0
        verdict = ghealth.exec(*AS_ALB)
        assert verdict.returncode == 4
        assert "connection refused" in verdict.stdout


def test_nothing_is_written(agent: Agent) -> None:
    """Where it may write, it does not: only the runtime's files are left."""
    mounted = {"/dev", "/etc", "/proc", "/run", "/sys"}
    with container("--read-only=false", "--user=0:0", CACHE_TTL="0") as ghealth:
        assert ghealth.exec("ghealth", "check").returncode == 0
        agent.state = SICK
        assert ghealth.exec(*AS_ALB).returncode == 4
        ghealth.signal("INT")
        assert ghealth.exit_code() == 0
        changed = [line.split()[1] for line in podman("diff", ghealth.name).stdout.splitlines()]
    assert {"/".join(path.split("/")[:2]) for path in changed} <= mounted


@pytest.mark.parametrize(("memory", "watchers"), [(64, 20), (96, 100)])
def test_memory_is_enough(agent: Agent, memory: int, watchers: int) -> None:
    """In 64 MiB it serves checks and a few watches, in 96 MiB all that it allows."""
    request = health_pb2.HealthCheckRequest()
    with container(memory=memory, CACHE_TTL="0") as ghealth, ExitStack() as stack:

        def connection() -> health_pb2_grpc.HealthStub:
            own = [("grpc.use_local_subchannel_pool", 1)]
            channel = grpc.insecure_channel("127.0.0.1:25021", own)
            return health_pb2_grpc.HealthStub(stack.enter_context(channel))

        stubs = [connection() for _ in range(0, watchers, MAX_WATCHES_PER_CONNECTION)]
        watches = [
            stubs[number // MAX_WATCHES_PER_CONNECTION].Watch(request, timeout=TIMEOUT)
            for number in range(watchers)
        ]
        assert {next(watch).status for watch in watches} == {Status.SERVING}
        for _ in range(300):
            assert stubs[0].Check(request, timeout=TIMEOUT).status == Status.SERVING
        agent.state = SICK
        assert {next(watch).status for watch in watches} == {Status.NOT_SERVING}
        assert ghealth.memory_limit() == memory * MIB
        state = ghealth.inspect()["State"]
        assert (state["Running"], state["OOMKilled"]) == (True, False)


def test_every_module_is_compiled() -> None:
    """Each file has byte code of this Python, which is used without a check of the source."""
    script = (
        "import importlib.util as u, pathlib, sys\n"
        "for file in pathlib.Path('/opt/ghealth').rglob('*.py'):\n"
        "    code = pathlib.Path(u.cache_from_source(str(file)))\n"
        "    if not code.exists() or code.read_bytes()[4:8] != b'\\x01\\0\\0\\0':\n"
        "        print(file)\n"
        "print(sys.version_info[:2])\n"
    )
    done = python(script)
    assert done.stdout == "(3, 13)\n", done

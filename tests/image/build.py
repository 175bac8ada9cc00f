"""Builds the image on local bases, without a registry of images."""

import os
import shutil
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path
from typing import Any, Final

from tests.support import interrupt

ROOT: Final = Path(__file__).parents[2]
IMAGE: Final = "localhost/ghealth:test"

_SUITE: Final = "trixie"
RUN_BASE: Final = f"localhost/ghealth-run-base:{_SUITE}"
_BASE: Final = f"localhost/ghealth-base:{_SUITE}"

_STORAGE: Final = ROOT / ".image"
"""Kept, so that the bases are built once; `make clean` removes it."""

_RUN: Final = Path(f"/run/ghealth-image-{zlib.crc32(bytes(ROOT)):08x}")
"""Data of this boot, for this checkout; the path is short, for the sockets in it."""

_CONFIGURATION: Final = """\
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=4096:4096"]
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "runc"
"""
"""crun of Debian 12 fails on some kernels; the limits are those that a runtime sets by default."""

# The machine's certificate authority and package index, for the downloads of the build.
_OF_THE_MACHINE: Final = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pip.conf")

SOURCE: Final = "https://example.com/ghealth"
"""What `make image SOURCE=…` is given, where the release gives the repository's address."""

TIMEOUT: Final = 1200.0
"""Seconds; where nothing is cached, most goes into downloads."""


def tool(name: str) -> tuple[str, ...]:
    """Return the command of buildah or podman, with the images of this project alone."""
    return (name, "--root", str(_STORAGE / "storage"), "--runroot", str(_RUN))


def run(*command: str, timeout: float = TIMEOUT) -> "subprocess.CompletedProcess[str]":
    """Run a command to its end; buildah and podman find their configuration."""
    configuration = {"CONTAINERS_CONF": str(_STORAGE / "containers.conf")}
    environment = os.environ | configuration | {"BUILDAH_ISOLATION": "chroot"}
    options: dict[str, Any] = {"capture_output": True, "text": True, "timeout": timeout}
    return subprocess.run(command, cwd=ROOT, env=environment, check=False, **options)


def output(*command: str) -> str:
    """Run a command to its end and return its output.

    Raises:
        SystemExit: If it fails; the message is its output.
    """
    done = run(*command)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    return done.stdout.strip()


def make_bases() -> None:
    """Create a Debian with Python, and one like distroless: without a shell or any command."""
    buildah = tool("buildah")
    present = output(*buildah, "images", "--format", "{{.Name}}:{{.Tag}}").split()
    if _BASE not in present:
        with tempfile.TemporaryDirectory() as scratch:
            options = ("--include=ca-certificates,python3,python3-venv", "--variant=apt")
            retries = '--aptopt=Acquire::Retries "5"'
            output("mmdebstrap", *options, retries, _SUITE, f"{scratch}/base.tar")
            output(*tool("podman"), "import", f"{scratch}/base.tar", _BASE)
    if RUN_BASE not in present:
        container = output(*buildah, "from", "--pull-never", _BASE)
        system_root = Path(output(*buildah, "mount", container))
        for command in (*system_root.glob("usr/bin/*"), *system_root.glob("usr/sbin/*")):
            if not command.name.startswith("python3"):
                command.unlink()
        output(*buildah, "commit", "--rm", container, RUN_BASE)


def make_image() -> None:
    """Build the image by `make image`, on the bases made here."""
    options = [f"--build-arg BUILD_BASE={_BASE} --build-arg RUN_BASE={RUN_BASE}"]
    options += [f"--volume {file}:{file}:ro" for file in _OF_THE_MACHINE if Path(file).exists()]
    engine = " ".join([*tool("buildah"), "build --format docker --pull-never", *options])
    variables = (f"ENGINE={engine}", f"IMAGE={IMAGE}", f"SOURCE={SOURCE}")
    output("make", "--no-print-directory", "image", *variables)


def check_arm64() -> None:
    """Install what the Dockerfile installs, but for linux/arm64: each package has such a wheel."""
    arm64 = ("--platform=manylinux_2_28_aarch64", "--platform=manylinux2014_aarch64")
    python = ("--python-version=3.13", "--implementation=cp", "--only-binary=:all:", "--no-deps")
    lock = ("--require-hashes", f"--requirement={ROOT / 'requirements' / 'image.txt'}")
    with tempfile.TemporaryDirectory() as scratch:
        pip = (sys.executable, "-m", "pip", "install", "--quiet", "--no-compile")
        output(*pip, f"--target={scratch}", *arm64, *python, *lock)


def main() -> int:
    """Build the image; a failure ends it with its message."""
    if os.geteuid() != 0:
        raise SystemExit("make image-test makes a Debian system and namespaces: it needs root")
    _STORAGE.mkdir(exist_ok=True)
    (_STORAGE / "containers.conf").write_text(_CONFIGURATION)
    # podman's record of containers, none of which outlives a run: with it, podman refuses to
    # work in a checkout that was moved.
    shutil.rmtree(_STORAGE / "storage" / "libpod", ignore_errors=True)
    for number, step in enumerate((make_bases, make_image, check_arm64), 1):
        print(f"{number} of 3: {step.__doc__}", flush=True)
        step()
    return 0


if __name__ == "__main__":
    interrupt.run(main)

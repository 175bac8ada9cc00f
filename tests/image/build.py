"""Builds the image on local bases, without a registry of images."""

import os
import shutil
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path
from typing import Final

from tests.support import interrupt

ROOT: Final = Path(__file__).parents[2]
IMAGE: Final = "localhost/ghealth:test"

_SUITE: Final = "trixie"
RUN_BASE: Final = f"localhost/ghealth-run-base:{_SUITE}"
_BASE: Final = f"localhost/ghealth-base:{_SUITE}"
_PACKAGES: Final = ("ca-certificates", "python3", "python3-venv")

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

_TOOLS: Final = ("buildah", "conmon", "ip", "mmdebstrap", "podman", "runc", "unshare")

# The machine's certificate authority and package index, for the downloads of the build.
_OF_THE_MACHINE: Final = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pip.conf")

SOURCE: Final = "https://example.com/ghealth"
"""What `make image SOURCE=…` is given, where the release gives the repository's address."""

_AARCH64: Final = 183
"""Of ELF's machines."""

BUILD_TIMEOUT: Final = 1200.0
"""Seconds; where nothing is cached, most goes into downloads."""


class BuildError(Exception):
    """A tool is missing or failed; the message names it."""


def environment() -> dict[str, str]:
    """Return the environment that buildah and podman run in."""
    configuration = _STORAGE / "containers.conf"
    return os.environ | {"CONTAINERS_CONF": str(configuration), "BUILDAH_ISOLATION": "chroot"}


def tool(name: str) -> tuple[str, ...]:
    """Return the command of buildah or podman, with the images of this project alone."""
    return (name, "--root", str(_STORAGE / "storage"), "--runroot", str(_RUN))


def run(*command: str) -> str:
    """Run a command to its end and return its output.

    Raises:
        BuildError: If it fails; the message is its output.
    """
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=BUILD_TIMEOUT,
        check=False,
    )
    if done.returncode:
        raise BuildError(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    return done.stdout.strip()


def check_machine() -> None:
    """Verify that the machine can build and run images.

    Raises:
        BuildError: If not; the message names what is missing.
    """
    if os.geteuid() != 0:
        raise BuildError("make image-test makes a Debian system and namespaces: it needs root")
    if missing := [name for name in _TOOLS if not shutil.which(name)]:
        raise BuildError(f"make image-test needs {', '.join(missing)}: .ci/run installs them")


def make_bases() -> None:
    """Create a Debian with Python, and one like distroless: without a shell or any command."""
    present = run(*tool("buildah"), "images", "--format", "{{.Name}}:{{.Tag}}").split()
    if _BASE not in present:
        with tempfile.TemporaryDirectory() as scratch:
            system = f"{scratch}/base.tar"
            options = (f"--include={','.join(_PACKAGES)}", '--aptopt=Acquire::Retries "5"')
            run("mmdebstrap", "--variant=apt", *options, _SUITE, system)
            container = run(*tool("buildah"), "from", "scratch")
            run(*tool("buildah"), "add", container, system, "/")
            run(*tool("buildah"), "commit", "--rm", container, _BASE)
    if RUN_BASE not in present:
        container = run(*tool("buildah"), "from", "--pull-never", _BASE)
        system_root = Path(run(*tool("buildah"), "mount", container))
        for folder in ("usr/bin", "usr/sbin"):
            for command in (system_root / folder).iterdir():
                if not command.name.startswith("python3"):
                    command.unlink()
        run(*tool("buildah"), "commit", "--rm", container, RUN_BASE)


def make_image() -> None:
    """Build the image by `make image`, on the bases made here."""
    bases = {"BUILD_BASE": _BASE, "RUN_BASE": RUN_BASE}
    options = [f"--build-arg {name}={base}" for name, base in bases.items()]
    options += [f"--volume {file}:{file}:ro" for file in _OF_THE_MACHINE if Path(file).exists()]
    engine = " ".join([*tool("buildah"), "build --format docker --pull-never", *options])
    run(
        "make",
        "--no-print-directory",
        "image",
        f"ENGINE={engine}",
        f"IMAGE={IMAGE}",
        f"SOURCE={SOURCE}",
    )


def check_arm64() -> None:
    """Install what the Dockerfile installs, but for linux/arm64, and look at what it is.

    Raises:
        BuildError: If a package has no such wheel, or brings a library for another machine.
    """
    arm64 = ("--platform=manylinux_2_28_aarch64", "--platform=manylinux2014_aarch64")
    python = ("--python-version=3.13", "--implementation=cp", "--only-binary=:all:", "--no-deps")
    lock = f"--requirement={ROOT / 'requirements' / 'image.txt'}"
    with tempfile.TemporaryDirectory() as scratch:
        pip = (sys.executable, "-m", "pip", "install", "--quiet", "--no-compile")
        run(*pip, f"--target={scratch}", *arm64, *python, "--require-hashes", lock)
        libraries = list(Path(scratch).rglob("*.so"))
        foreign = [library.name for library in libraries if not _is_arm64(library)]
    if foreign or not libraries:
        raise BuildError(f"not for linux/arm64: {', '.join(foreign) or 'no library at all'}")
    print(f"linux/arm64: all packages of the lock, {len(libraries)} compiled libraries")


def _is_arm64(library: Path) -> bool:
    """Return whether a library is ELF for AArch64: the field e_machine, at byte 18, is 183."""
    head = library.read_bytes()[:20]
    return head[:4] == b"\x7fELF" and int.from_bytes(head[18:20], "little") == _AARCH64


def main() -> int:
    """Build the image, and report a failure in one line."""
    try:
        check_machine()
        _STORAGE.mkdir(exist_ok=True)
        (_STORAGE / "containers.conf").write_text(_CONFIGURATION)
        # podman's record of containers, none of which outlives a run: with it, podman refuses to
        # work in a checkout that was moved.
        shutil.rmtree(_STORAGE / "storage" / "libpod", ignore_errors=True)
        print("1 of 3: the bases, which takes a minute the first time", flush=True)
        make_bases()
        print("2 of 3: the image", flush=True)
        make_image()
        print("3 of 3: the packages for linux/arm64", flush=True)
        check_arm64()
    except BuildError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    interrupt.run(main)

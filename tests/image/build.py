"""Builds the image on bases made here: no registry of images is asked."""

import os
import shutil
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
IMAGE: Final = "localhost/ghealth:test"

_SUITE: Final = "trixie"
RUN_BASE: Final = f"localhost/ghealth-run-base:{_SUITE}"
_BASE: Final = f"localhost/ghealth-base:{_SUITE}"
_PACKAGES: Final = ("ca-certificates", "python3", "python3-venv")

_STORAGE: Final = ROOT / ".image"
"""Kept, so that the bases are made once; `make clean` takes it away."""

_RUN: Final = Path(f"/run/ghealth-image-{zlib.crc32(bytes(ROOT)):08x}")
"""What is kept about this boot, for this checkout; a short path, for the sockets in it."""

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

# A certificate authority or index of the machine's own, for the downloads of the build.
_OF_THE_MACHINE: Final = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pip.conf")

BUILD_PATIENCE: Final = 1200.0
"""Seconds; where nothing is cached, most goes into downloads."""


class BuildError(Exception):
    """A tool is missing, or did not do what it should; the text says which."""


def environment() -> dict[str, str]:
    """Tell the environment that buildah and podman run in."""
    configuration = _STORAGE / "containers.conf"
    return os.environ | {"CONTAINERS_CONF": str(configuration), "BUILDAH_ISOLATION": "chroot"}


def tool(name: str) -> tuple[str, ...]:
    """Tell the command of buildah or podman, with the images of this project alone."""
    return (name, "--root", str(_STORAGE / "storage"), "--runroot", str(_RUN))


def run(*command: str) -> str:
    """Run a command to its end and tell what it printed.

    Raises:
        BuildError: If it fails; the text is what it said.
    """
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=BUILD_PATIENCE,
        check=False,
    )
    if done.returncode:
        raise BuildError(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    return done.stdout.strip()


def check_machine() -> None:
    """See that the machine can build and run images.

    Raises:
        BuildError: If not; the text says what it needs.
    """
    if os.geteuid() != 0:
        raise BuildError("make image-test makes a Debian system and namespaces: it needs root")
    if missing := [name for name in _TOOLS if not shutil.which(name)]:
        raise BuildError(f"make image-test needs {', '.join(missing)}: .ci/run installs them")


def make_bases() -> None:
    """Make a Debian with Python, and one as bare as distroless: without a shell or any command."""
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
    run("make", "--no-print-directory", "image", f"ENGINE={engine}", f"IMAGE={IMAGE}")


def check_arm64() -> None:
    """See that what the Dockerfile installs is there for linux/arm64, built, as it is locked.

    Raises:
        BuildError: If it is not.
    """
    arm64 = ("--platform=manylinux_2_28_aarch64", "--platform=manylinux2014_aarch64")
    python = ("--python-version=3.13", "--implementation=cp", "--only-binary=:all:", "--no-deps")
    lock = f"--requirement={ROOT / 'requirements' / 'image.txt'}"
    with tempfile.TemporaryDirectory() as scratch:
        pip = (sys.executable, "-m", "pip", "download", "--quiet", f"--dest={scratch}")
        run(*pip, *arm64, *python, "--require-hashes", lock)


def main() -> int:
    """Build it, and say in one line why not."""
    try:
        check_machine()
        _STORAGE.mkdir(exist_ok=True)
        (_STORAGE / "containers.conf").write_text(_CONFIGURATION)
        # podman's record of containers, none of which outlives a run: with it, podman refuses to
        # work in a checkout that was moved.
        shutil.rmtree(_STORAGE / "storage" / "libpod", ignore_errors=True)
        make_bases()
        make_image()
        check_arm64()
    except BuildError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

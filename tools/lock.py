"""Writes requirements/*.txt: versions and hashes of all packages, without an index's address.

What is locked stays as it is where pyproject.toml allows it; `--upgrade` takes the newest versions.
"""

import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
HEADER = "# Made by `make lock` from pyproject.toml: versions and hashes, for every platform.\n"


def lock(name: str, requirements: list[str], constraints: Path | None = None) -> Path:
    """Resolve requirements for every supported Python and platform into one file."""
    upgrade = [option for option in sys.argv[1:] if option == "--upgrade"]
    target = ROOT / "requirements" / f"{name}.txt"
    command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--universal"]
    command += ["--python-version", "3.11", "--generate-hashes", "--no-header", "--no-annotate"]
    # pip installs by hashes only what has the extras that others require.
    command += ["--no-strip-extras"]
    command += ["--no-emit-index-url", "--no-emit-find-links", *upgrade]
    # uv prefers the versions that its output file has already.
    command += ["--output-file", str(target), "-"]
    command += ["--constraint", str(constraints)] if constraints else []
    subprocess.run(
        command, input="\n".join(requirements), text=True, check=True, stdout=subprocess.DEVNULL
    )
    target.write_text(HEADER + target.read_text())
    return target


def main() -> None:
    """Lock the packages of the image, and those of developers with the same versions."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    run = project["project"]["dependencies"]
    locked = lock("image", run)
    groups = project["dependency-groups"]
    dev = lock("dev", [*run, *groups["dev"]], locked)
    lock("build", groups["build"], dev)
    lock("deploy", [*run, *groups["dev"], *groups["deploy"]], dev)
    lock("mutants", [*run, *groups["dev"], *groups["mutants"]], dev)


if __name__ == "__main__":
    main()

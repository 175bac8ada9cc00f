"""Writes requirements/*.txt: versions and hashes of all packages, without an index's address."""

import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
HEADER = "# Made by `make lock` from pyproject.toml: versions and hashes, for every platform.\n"


def lock(name: str, requirements: list[str], constraints: Path | None = None) -> Path:
    """Resolve requirements for every supported Python and platform into one file."""
    target = ROOT / "requirements" / f"{name}.txt"
    command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--universal"]
    command += ["--python-version", "3.11", "--generate-hashes", "--no-header", "--no-annotate"]
    command += ["--no-emit-index-url", "--no-emit-find-links", "--upgrade", "-"]
    command += ["--constraint", str(constraints)] if constraints else []
    found = subprocess.run(
        command, input="\n".join(requirements), text=True, check=True, stdout=subprocess.PIPE
    )
    target.write_text(HEADER + found.stdout)
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

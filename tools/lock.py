"""Writes requirements/*.txt: versions and hashes of all packages, without an index's address.

What is locked stays as it is where pyproject.toml allows it; `--upgrade` takes the newest versions.
"""

import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parent.parent
HEADER: Final = (
    "# Made by `make lock` from pyproject.toml: versions and hashes, for every platform.\n"
)

_project = tomllib.loads((ROOT / "pyproject.toml").read_text())
RUN: Final[list[str]] = _project["project"]["dependencies"]
_groups = _project["dependency-groups"]
_dev = [*RUN, *_groups["dev"]]

LOCKS: Final = {
    "image": (RUN, ""),
    "dev": (_dev, "image"),
    "build": (_groups["build"], "dev"),
    "deploy": ([*_dev, *_groups["deploy"]], "dev"),
    "mutants": ([*_dev, *_groups["mutants"]], "dev"),
}
"""What each lock has, and the lock whose versions it takes, which is written before it."""


def main() -> None:
    """Resolve all locks for every supported Python and platform."""
    command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--universal"]
    command += ["--python-version", "3.11", "--generate-hashes", "--no-header", "--no-annotate"]
    # pip installs by hashes only what has the extras that others require.
    command += ["--no-strip-extras", "--no-emit-index-url", "--no-emit-find-links", *sys.argv[1:]]
    for name, (requirements, constraint) in LOCKS.items():
        target = ROOT / "requirements" / f"{name}.txt"
        # uv prefers the versions that its output file has already.
        files = ["--output-file", str(target), "-"]
        if constraint:
            files += ["--constraint", str(target.with_stem(constraint))]
        subprocess.check_output([*command, *files], input="\n".join(requirements), text=True)
        target.write_text(HEADER + target.read_text())


if __name__ == "__main__":
    main()

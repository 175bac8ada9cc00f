"""Prints what a release publishes: its names, its notes and, before it, all of that for a person.

It uses nothing but the standard library, so that the workflow can run it without an environment.
"""

import argparse
import re
import sys
import tomllib
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parent.parent
REGISTRY: Final = "ghcr.io"
PLACEHOLDER: Final = "OWNER"
"""Stands in pyproject.toml and README.md for the account that owns the repository."""


class ReleaseError(Exception):
    """Something does not fit the release; the text is the reason."""


def version() -> str:
    """Return the version in the code."""
    text = (ROOT / "src" / "ghealth" / "__init__.py").read_text()
    found = re.search(r'^__version__ = "(.*)"$', text, re.MULTILINE)
    if found is None:
        raise ReleaseError("src/ghealth/__init__.py has no __version__")
    return found[1]


def repository() -> str:
    """Return the repository that the links of the package lead to, as OWNER/NAME."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return str(project["urls"]["Repository"]).removeprefix("https://github.com/")


def notes(changelog: str, release: str) -> str:
    """Return the section of a version in CHANGELOG.md, without its heading.

    Each item is one line: GitHub keeps the line breaks of a release's notes.

    Raises:
        ReleaseError: If there is none, or nothing is in it.
    """
    sections = re.split(r"^## \[(.*?)\].*$", changelog, flags=re.MULTILINE)
    for name, text in zip(sections[1::2], sections[2::2], strict=True):
        if name == release and text.strip():
            return re.sub(r"\n +(?=[^ -])", " ", text.strip()) + "\n"
    raise ReleaseError(f"CHANGELOG.md has no section with text for {release}")


def image(owner_and_name: str) -> str:
    """Return the name of a repository's image: registries know lower case only."""
    return f"{REGISTRY}/{owner_and_name.lower()}"


def tags(owner_and_name: str, release: str) -> list[str]:
    """Return the image's names: the version and, unless it is a pre-release, `latest`."""
    names = [release, "latest"] if re.fullmatch(r"[\d.]+", release) else [release]
    return [f"{image(owner_and_name)}:{name}" for name in names]


def files(release: str) -> list[Path]:
    """Return what `make dist` builds."""
    names = (f"ghealth-{release}-py3-none-any.whl", f"ghealth-{release}.tar.gz")
    return [ROOT / "dist" / name for name in names]


def check(tag: str, owner_and_name: str) -> None:
    """Check that a tag in a repository may be released.

    Raises:
        ReleaseError: If the tag, CHANGELOG.md or the links of the package do not fit.
    """
    if tag != f"v{version()}":
        raise ReleaseError(f"the tag is {tag}, but the version in the code is {version()}")
    notes((ROOT / "CHANGELOG.md").read_text(), version())
    if owner_and_name != repository():
        raise ReleaseError(
            f"the repository is {owner_and_name}, but the links in pyproject.toml and README.md "
            f"lead to {repository()}"
        )


def names(tag: str, owner_and_name: str) -> str:
    """Return what the workflow's later jobs need, as lines of $GITHUB_OUTPUT."""
    check(tag, owner_and_name)
    lines = {
        "version": version(),
        "image": image(owner_and_name),
        "tags": ",".join(tags(owner_and_name, version())),
    }
    return "".join(f"{name}={value}\n" for name, value in lines.items())


def dry_run() -> str:
    """Return what the tag of this version would publish."""
    release, where = version(), repository()
    lines = [f"tag v{release} of {where} would publish", "", "on PyPI, as ghealth:"]
    lines += [f"  {file.name} ({file.stat().st_size / 1024:.0f} KiB)" for file in files(release)]
    lines += ["", "for linux/amd64 and linux/arm64, with SBOM and provenance:"]
    lines += [f"  {name}" for name in tags(where, release)]
    lines += ["", f"on GitHub, as release v{release}, with the files above and these notes:", ""]
    text = "\n".join(lines) + f"\n{notes((ROOT / 'CHANGELOG.md').read_text(), release)}"
    if where.startswith(f"{PLACEHOLDER}/"):
        text += f"\n{PLACEHOLDER} is a placeholder: the workflow publishes nothing until "
        text += "pyproject.toml and README.md name the repository.\n"
    return text


def main() -> int:
    """Print what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    asked = commands.add_parser("names", help="check a tag, print lines of $GITHUB_OUTPUT")
    asked.add_argument("--tag", required=True)
    asked.add_argument("--repository", required=True, metavar="OWNER/NAME")
    commands.add_parser("notes", help="print the notes of this version")
    commands.add_parser("dry-run", help="print what would be published")
    arguments = parser.parse_args()
    try:
        if arguments.command == "names":
            text = names(arguments.tag, arguments.repository)
        elif arguments.command == "notes":
            text = notes((ROOT / "CHANGELOG.md").read_text(), version())
        else:
            text = dry_run()
    except ReleaseError as error:
        print(error, file=sys.stderr)
        return 1
    print(text, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())

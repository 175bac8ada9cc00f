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


def version() -> str:
    """Return the version in the code."""
    code = (ROOT / "src" / "ghealth" / "__init__.py").read_text()
    return code.partition('__version__ = "')[2].partition('"')[0]


def repository() -> str:
    """Return the repository that the links of the package lead to, as OWNER/NAME."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return str(project["urls"]["Repository"]).removeprefix("https://github.com/")


def notes(changelog: str, release: str) -> str:
    """Return the section of a version in CHANGELOG.md, without its heading.

    Each item is one line: GitHub keeps the line breaks of a release's notes.
    """
    sections = re.split(r"^## \[(.*?)\].*$", changelog, flags=re.MULTILINE)
    text = dict(zip(sections[1::2], sections[2::2], strict=True)).get(release, "").strip()
    if not text:
        sys.exit(f"CHANGELOG.md has no section with text for {release}")
    return re.sub(r"\n +(?=[^ -])", " ", text) + "\n"


def tags(owner_and_name: str, release: str) -> list[str]:
    """Return the image's names: the version and, unless it is a pre-release, `latest`."""
    names = [release, "latest"] if re.fullmatch(r"[\d.]+", release) else [release]
    # Registries know lower case only.
    return [f"ghcr.io/{owner_and_name.lower()}:{name}" for name in names]


def names(tag: str, owner_and_name: str) -> str:
    """Check that a tag in a repository may be released.

    Returns:
        What the workflow's later jobs need, as lines of $GITHUB_OUTPUT.
    """
    if tag != f"v{version()}":
        sys.exit(f"the tag is {tag}, but the version in the code is {version()}")
    if owner_and_name != repository():
        sys.exit(
            f"the repository is {owner_and_name}, but the links in pyproject.toml and README.md "
            f"lead to {repository()}"
        )
    this_version()
    images = tags(owner_and_name, version())
    image = images[0].rpartition(":")[0]
    return f"version={version()}\nimage={image}\ntags={','.join(images)}\n"


def this_version() -> str:
    """Return the notes of this version."""
    return notes((ROOT / "CHANGELOG.md").read_text(), version())


def dry_run() -> str:
    """Return what the tag of this version would publish."""
    release, where = version(), repository()
    files = [f"ghealth-{release}-py3-none-any.whl", f"ghealth-{release}.tar.gz"]
    sizes = [(ROOT / "dist" / name).stat().st_size / 1024 for name in files]
    lines = [f"tag v{release} of {where} would publish", "", "on PyPI, as ghealth:"]
    lines += [f"  {name} ({size:.0f} KiB)" for name, size in zip(files, sizes, strict=True)]
    lines += ["", "for linux/amd64 and linux/arm64, with SBOM and provenance:"]
    lines += [f"  {name}" for name in tags(where, release)]
    lines += ["", f"on GitHub, as release v{release}, with the files above and these notes:"]
    lines += ["", this_version()]
    if where.startswith("OWNER/"):  # where the account that owns the repository will be
        lines.append(
            "OWNER is a placeholder: the workflow publishes nothing until "
            "pyproject.toml and README.md name the repository.\n"
        )
    return "\n".join(lines)


def main() -> None:
    """Print what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("names", "notes", "dry-run"))
    parser.add_argument("--tag", help="with names: the tag to check")
    parser.add_argument("--repository", metavar="OWNER/NAME", help="with names: where it is")
    arguments = parser.parse_args()
    texts = {
        "names": lambda: names(arguments.tag, arguments.repository),
        "notes": this_version,
        "dry-run": dry_run,
    }
    print(texts[arguments.what](), end="")


if __name__ == "__main__":
    main()

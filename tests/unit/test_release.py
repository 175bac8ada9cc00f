import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from ghealth import __version__
from tools import pypi_readme, release

ROOT = Path(__file__).parents[2]
README, CI_RUN = ((ROOT / name).read_text() for name in ("README.md", ".ci/run"))
REPOSITORY = release.repository()
WORKFLOWS = [path.read_text() for path in sorted((ROOT / ".github/workflows").glob("*.yml"))]
CI, RELEASE = (yaml.safe_load(text)["jobs"] for text in WORKFLOWS)
CHANGELOG = """\
## [Unreleased]

## [0.2.0] - 2027-01-01
- Two, on
  two lines.
  - Three.

## [0.1.0] - 2026-11-25
- One.
"""


def test_the_notes_are_the_section_of_the_version() -> None:
    """The notes have the text of their version, and of no other, with a line for each item."""
    assert release.notes(CHANGELOG, "0.2.0") == "- Two, on two lines.\n  - Three.\n"
    assert release.notes(CHANGELOG, "0.1.0") == "- One.\n"


@pytest.mark.parametrize("version", ["0.3.0", "Unreleased", "0.1"])
def test_a_version_without_notes_is_refused(version: str) -> None:
    """A section that is missing or empty is a mistake."""
    with pytest.raises(SystemExit, match="no section"):
        release.notes(CHANGELOG, version)


def test_this_version_can_be_released() -> None:
    """The version in the code, CHANGELOG.md and the links of the package fit together."""
    image = f"ghcr.io/{REPOSITORY.lower()}"
    tags = f"{image}:{__version__},{image}:latest"
    lines = f"version={__version__}\nimage={image}\ntags={tags}\n"
    assert release.names(f"v{__version__}", REPOSITORY) == lines


@pytest.mark.parametrize(
    ("tag", "repository", "mistake"),
    [
        ("v9.9.9", REPOSITORY, "the tag is v9.9.9"),
        (__version__, REPOSITORY, "the tag is"),
        (f"v{__version__}", "another/ghealth", "the repository is another/ghealth"),
    ],
)
def test_what_does_not_fit_is_refused(
    tag: str, repository: str, mistake: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another tag, or another repository than the links of the package lead to, ends a release."""
    arguments = ["release", "names", "--tag", tag, "--repository", repository]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit, match=mistake):
        release.main()


def test_a_pre_release_is_not_the_latest_image() -> None:
    """Only a final version moves the tag `latest`, and the image's name is in lower case."""
    assert release.tags("Owner/ghealth", "1.0.0rc1") == ["ghcr.io/owner/ghealth:1.0.0rc1"]


def test_the_readme_has_the_names_that_are_published() -> None:
    """README.md and pyproject.toml name one repository, and README.md this version's image."""
    links = README + (ROOT / "pyproject.toml").read_text()
    named = re.findall(r"(?:github\.com|ghcr\.io)/([\w-]+/ghealth)", links)
    assert set(named) == {REPOSITORY}
    assert f"ghcr.io/{REPOSITORY}:{__version__}" in README
    assert "pip install ghealth\n" in README


def test_the_links_work_on_pypi() -> None:
    """Links to files, and pictures, get the address of the version's tag; all others stay."""
    text = "[a](docs/a.md#b) ![b](b.png) [c](https://example.com) [d](#e)"
    base = "https://host/blob/v1/"
    expected = text.replace("docs", f"{base}docs").replace("b.png", "https://host/raw/v1/b.png")
    assert pypi_readme.absolute(text, base) == expected


# The workflows.


def test_actions_are_pinned_and_jobs_have_few_permissions() -> None:
    """Each action is named by its commit, with its tag in a comment; each job lists what it may."""
    for text in WORKFLOWS:
        uses = re.findall(r"uses: (?!\./)(.*)$", text, re.MULTILINE)
        pinned = r"[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+"
        assert [use for use in uses if not re.fullmatch(pinned, use)] == []
        assert yaml.safe_load(text)["permissions"] == {}
    assert all("permissions" in job for job in (CI | RELEASE).values())


def test_only_publishing_jobs_get_an_identity() -> None:
    """`id-token: write` is for the image's attestation and for trusted publishing."""
    named = {name for name, job in RELEASE.items() if "id-token" in job["permissions"]}
    assert named == {"image", "pypi"}


def test_the_workflow_runs_what_ci_runs() -> None:
    """The jobs of ci.yml run all targets of .ci/run and the soak, each Python the tests."""
    matrix = CI["run"]["strategy"]["matrix"]
    listed = re.findall(r"^all=\((.*) newest\)$", CI_RUN, re.MULTILINE)[0].split()
    assert " ".join(matrix["targets"]).split() == [*listed, "soak"]
    pythons = {entry["python"] for entry in matrix["include"] if entry["targets"] == "test"}
    assert pythons | set(matrix["python"]) == {"3.11", "3.12", "3.13", "3.14"}


def test_an_unknown_target_is_refused() -> None:
    """`.ci/run` names the targets that it knows, and runs nothing."""
    command = [str(ROOT / ".ci" / "run"), "lnit"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("unknown target lnit; expected one of: lint test ")

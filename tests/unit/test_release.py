import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from ghealth import __version__
from tools import pypi_readme, release

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
CHANGELOG = """\
# Changelog

## [Unreleased]

## [0.2.0] - 2027-01-01

### Added

- Two, on
  two lines.
  - Three.

## [0.1.0] - 2026-11-25

- One.
"""


def test_the_notes_are_the_section_of_the_version() -> None:
    """The notes have the text of their version, and of no other, with a line for each item."""
    assert release.notes(CHANGELOG, "0.2.0") == "### Added\n\n- Two, on two lines.\n  - Three.\n"
    assert release.notes(CHANGELOG, "0.1.0") == "- One.\n"


@pytest.mark.parametrize("version", ["0.3.0", "Unreleased", "0.1"])
def test_a_version_without_notes_is_refused(version: str) -> None:
    """A section that is missing or empty is a mistake."""
    with pytest.raises(release.ReleaseError, match="no section"):
        release.notes(CHANGELOG, version)


def test_this_version_can_be_released() -> None:
    """The version in the code, CHANGELOG.md and the links of the package fit together."""
    lines = release.names(f"v{__version__}", release.repository()).splitlines()
    image = release.image(release.repository())
    assert lines == [
        f"version={__version__}",
        f"image={image}",
        f"tags={image}:{__version__},{image}:latest",
    ]


@pytest.mark.parametrize(
    ("tag", "repository", "mistake"),
    [
        ("v9.9.9", release.repository(), "the tag is v9.9.9"),
        (__version__, release.repository(), "the tag is"),
        (f"v{__version__}", "another/ghealth", "the repository is another/ghealth"),
    ],
)
def test_what_does_not_fit_is_refused(
    tag: str, repository: str, mistake: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another tag, or another repository than the links of the package lead to, ends a release."""
    arguments = ["names", "--tag", tag, "--repository", repository]
    monkeypatch.setattr(sys, "argv", ["release", *arguments])
    with pytest.raises(release.ReleaseError, match=mistake):
        release.names(tag, repository)
    assert release.main() == 1


def test_a_pre_release_is_not_the_latest_image() -> None:
    """Only a final version moves the tag `latest`, and the image's name is in lower case."""
    assert release.tags("Owner/ghealth", "1.0.0rc1") == ["ghcr.io/owner/ghealth:1.0.0rc1"]


def test_the_readme_has_the_names_that_are_published() -> None:
    """README.md and pyproject.toml name one repository, and README.md this version's image."""
    readme, project = ((ROOT / name).read_text() for name in ("README.md", "pyproject.toml"))
    owner = release.repository().partition("/")[0]
    named = re.findall(r"(?:github\.com|ghcr\.io)/([\w-]+)/ghealth", readme + project)
    assert set(named) == {owner}
    assert f"ghcr.io/{release.repository()}:{__version__}" in readme
    assert "pip install ghealth\n" in readme


def test_the_links_work_on_pypi() -> None:
    """Links to files get the address of the version's tag; all others stay."""
    text = "[a](docs/a.md#b) [c](https://example.com) [d](#e)"
    expected = "[a](B/docs/a.md#b) [c](https://example.com) [d](#e)"
    assert pypi_readme.absolute(text, "B/") == expected


# The workflows.


def test_actions_are_pinned_and_jobs_have_few_permissions() -> None:
    """Each action is named by its commit, with its tag in a comment; each job lists what it may."""
    for path in WORKFLOWS:
        for use in re.findall(r"uses: (?!\./)(.*)$", path.read_text(), re.MULTILINE):
            assert re.fullmatch(r"[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", use), use
        workflow = yaml.safe_load(path.read_text())
        assert workflow["permissions"] == {}
        assert all("permissions" in job for job in workflow["jobs"].values())


def test_only_publishing_jobs_get_an_identity() -> None:
    """`id-token: write` is for the image's attestation and for trusted publishing."""
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "release.yml").read_text())["jobs"]
    assert {name for name, job in jobs.items() if "id-token" in job["permissions"]} == {
        "image",
        "pypi",
    }


def test_the_workflow_runs_what_ci_runs() -> None:
    """The jobs of ci.yml run all targets of .ci/run and the soak, each Python the tests."""
    script = (ROOT / ".ci" / "run").read_text()
    listed = re.search(r"^all=\((.*)\)$", script, re.MULTILINE)
    assert listed is not None
    job = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"]["run"]
    matrix = job["strategy"]["matrix"]
    targets = " ".join(matrix["targets"]).split()
    assert [*targets, "newest"] == [*listed[1].removesuffix("newest").split(), "soak", "newest"]
    pythons = {entry["python"] for entry in matrix["include"] if entry["targets"] == "test"}
    assert pythons | set(matrix["python"]) == {"3.11", "3.12", "3.13", "3.14"}


def test_an_unknown_target_is_refused() -> None:
    """`.ci/run` names the targets that it knows, and runs nothing."""
    done = subprocess.run(
        [ROOT / ".ci" / "run", "lnit"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith("unknown target lnit; expected one of: lint test ")

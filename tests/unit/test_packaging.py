import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
RUN = PROJECT["project"]["dependencies"]
IMAGE = RUN + PROJECT["project"]["optional-dependencies"]["metrics"]
GROUPS = PROJECT["dependency-groups"]


def names(requirements: list[str]) -> set[str]:
    return {re.split(r"[^\w-]", requirement, maxsplit=1)[0] for requirement in requirements}


def locked(name: str) -> str:
    return (ROOT / "requirements" / f"{name}.txt").read_text()


@pytest.mark.parametrize(
    ("lock", "wanted"),
    [
        ("run", RUN),
        ("image", IMAGE),
        ("build", GROUPS["build"]),
        ("dev", IMAGE + GROUPS["dev"]),
        ("deploy", IMAGE + GROUPS["deploy"]),
        ("mutants", IMAGE + GROUPS["mutants"]),
    ],
)
def test_the_locks_have_what_the_project_asks_for(lock: str, wanted: list[str]) -> None:
    """`make lock` was run after the last change of the dependencies."""
    pinned = set(re.findall(r"^([\w-]+)==", locked(lock), re.MULTILINE))
    assert names(wanted) <= pinned


def test_the_locks_agree() -> None:
    """What the tests install of the run-time packages is what the image installs."""
    image = set(re.findall(r"^([\w-]+==\S+)", locked("image"), re.MULTILINE))
    assert set(re.findall(r"^([\w-]+==\S+)", locked("run"), re.MULTILINE)) < image
    for lock in ("dev", "deploy", "mutants"):
        assert image <= set(re.findall(r"^([\w-]+==\S+)", locked(lock), re.MULTILINE))


@pytest.mark.parametrize("lock", ["run", "image", "build", "dev", "deploy", "mutants"])
def test_the_locks_name_no_index(lock: str) -> None:
    """A lock has versions and hashes: where the packages come from is the machine's business."""
    assert "://" not in locked(lock)
    assert "index" not in locked(lock)


def test_the_image_builds_the_wheel_with_what_the_tests_do() -> None:
    """The build stage's lock is part of the tests' lock."""
    build = re.findall(r"^([\w-]+==\S+)", locked("build"), re.MULTILINE)
    assert set(build) <= set(re.findall(r"^([\w-]+==\S+)", locked("dev"), re.MULTILINE))


def test_the_grpc_packages_are_pinned_equal() -> None:
    """Trap 20: a newer grpcio-health-checking raises at import; List came with 1.85.1."""
    versions = {pin.partition("==")[2] for pin in RUN if pin.startswith("grpcio")}
    assert len(versions) == 1
    assert tuple(map(int, versions.pop().split("."))) >= (1, 85, 1)
    assert sum(pin.startswith("grpcio") for pin in RUN) == 3

import re
import tomllib
from pathlib import Path

import pytest

import ghealth

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
RUN = PROJECT["project"]["dependencies"]
GROUPS = PROJECT["dependency-groups"]
LOCKS = {
    "image": RUN,
    "build": GROUPS["build"],
    "dev": RUN + GROUPS["dev"],
    "deploy": RUN + GROUPS["dev"] + GROUPS["deploy"],
    "mutants": RUN + GROUPS["dev"] + GROUPS["mutants"],
}


def names(requirements: list[str]) -> set[str]:
    return {re.split(r"[^\w-]", requirement, maxsplit=1)[0] for requirement in requirements}


def text_of(lock: str) -> str:
    return (ROOT / "requirements" / f"{lock}.txt").read_text()


def pins(lock: str) -> dict[str, str]:
    return dict(re.findall(r"^([\w-]+)(?:\[[\w,-]+\])?==([\w.]+)", text_of(lock), re.MULTILINE))


def test_every_lock_is_known() -> None:
    """There are no locks but those that `make lock` writes."""
    assert {path.stem for path in (ROOT / "requirements").iterdir()} == set(LOCKS)


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_has_every_requirement(lock: str) -> None:
    """`make lock` was run after the last change of the dependencies."""
    assert names(LOCKS[lock]) <= set(pins(lock))


@pytest.mark.parametrize("lock", ["dev", "deploy", "mutants"])
def test_the_locks_agree(lock: str) -> None:
    """The tests install the same versions as the image."""
    assert pins("image").items() <= pins(lock).items()


def test_the_image_builds_the_wheel_with_the_tested_versions() -> None:
    """The lock of the build stage is part of the developers' lock."""
    assert pins("build").items() <= pins("dev").items()


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_names_no_index(lock: str) -> None:
    """A lock has versions and hashes; the index is configured on each machine."""
    assert "://" not in text_of(lock)
    assert "index" not in text_of(lock)


def test_run_time_dependencies_are_ranges() -> None:
    """Each has a lowest version and an upper bound, so that others can install ghealth too."""
    assert all(re.fullmatch(r"[\w-]+>=[\w.]+,<[\w.]+", requirement) for requirement in RUN)


def test_the_grpc_packages_have_the_same_range() -> None:
    """grpcio-health-checking raises at import beside an older grpcio; List came with 1.85.1."""
    ranges = {pin.partition(">=")[2] for pin in RUN if pin.startswith("grpcio")}
    assert ranges == {"1.85.1,<2"}
    assert len({version for name, version in pins("image").items() if "grpcio" in name}) == 1


def test_every_run_time_dependency_has_its_reason() -> None:
    """CONTRIBUTING.md has the reason for each, and lists no others."""
    text = (ROOT / "CONTRIBUTING.md").read_text().partition("## Dependencies")[2]
    listed = re.findall(r"^\| ([\w-]+) \|", text, re.MULTILINE)
    assert set(listed) - {"package"} == names(RUN)


def test_the_public_names_are_importable() -> None:
    """`__all__` is what the documentation calls public, and each name can be imported."""
    assert ghealth.__all__ == ["Probe", "ProbeResult", "Settings", "serve"]
    assert all(getattr(ghealth, name).__name__ == name for name in ghealth.__all__)
    with pytest.raises(AttributeError):
        ghealth.other  # noqa: B018

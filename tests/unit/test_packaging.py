import re
import tomllib
from pathlib import Path

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


def test_every_lock_is_up_to_date() -> None:
    """`make lock` was run after the last change of the dependencies, and left no other lock."""
    assert {path.stem for path in (ROOT / "requirements").iterdir()} == set(LOCKS)
    for lock, requirements in LOCKS.items():
        assert names(requirements) <= set(pins(lock)), lock


def test_the_locks_agree() -> None:
    """The tests install the versions of the image, and of its build stage."""
    for lock in ("dev", "deploy", "mutants"):
        assert (pins("image") | pins("build")).items() <= pins(lock).items()


def test_a_lock_names_no_index() -> None:
    """A lock has versions and hashes; the index is configured on each machine."""
    for lock in LOCKS:
        assert not re.search(r"://|index", text_of(lock)), lock


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

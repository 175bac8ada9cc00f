import re

from tools.lock import LOCKS, ROOT, RUN

TEXTS = {path.stem: path.read_text() for path in (ROOT / "requirements").iterdir()}
PINS = {
    lock: dict(re.findall(r"^([\w-]+)(?:\[[\w,-]+\])?==([\w.]+)", text, re.MULTILINE))
    for lock, text in TEXTS.items()
}


def names(requirements: list[str]) -> set[str]:
    return {re.split(r"[^\w-]", requirement, maxsplit=1)[0] for requirement in requirements}


def test_every_lock_is_up_to_date() -> None:
    """`make lock` was run after the last change of the dependencies, and left no other lock."""
    assert TEXTS.keys() == LOCKS.keys()
    for lock, (requirements, _) in LOCKS.items():
        assert names(requirements) <= PINS[lock].keys(), lock


def test_the_locks_agree() -> None:
    """The tests install the versions of the image, and of its build stage."""
    for lock in ("dev", "deploy", "mutants"):
        assert (PINS["image"] | PINS["build"]).items() <= PINS[lock].items()


def test_a_lock_names_no_index() -> None:
    """A lock has versions and hashes; the index is configured on each machine."""
    assert not re.search(r"://|index", "".join(TEXTS.values()))


def test_run_time_dependencies_are_ranges() -> None:
    """Each has a lowest version and an upper bound, so that others can install ghealth too."""
    assert all(re.fullmatch(r"[\w-]+>=[\w.]+,<[\w.]+", requirement) for requirement in RUN)


def test_the_grpc_packages_have_the_same_range() -> None:
    """grpcio-health-checking raises at import beside an older grpcio; List came with 1.85.1."""
    ranges = {pin.partition(">=")[2] for pin in RUN if pin.startswith("grpcio")}
    assert ranges == {"1.85.1,<2"}
    assert len({version for name, version in PINS["image"].items() if "grpcio" in name}) == 1


def test_every_run_time_dependency_has_its_reason() -> None:
    """CONTRIBUTING.md has the reason for each, and lists no others."""
    text = (ROOT / "CONTRIBUTING.md").read_text().partition("## Dependencies")[2]
    assert {"package", *names(RUN)} == set(re.findall(r"^\| ([\w-]+) \|", text, re.MULTILINE))

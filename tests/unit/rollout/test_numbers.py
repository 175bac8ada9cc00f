from pathlib import Path

from bench.rollout.numbers import DEREGISTRATION, DRAIN, GRACE, PRESTOP, differences
from bench.rollout.recipe import BOTH

ROOT = Path(__file__).parents[3]

AGREES = f"""
metadata:
  annotations:
    alb.ingress.kubernetes.io/healthcheck-interval-seconds: "10"
    alb.ingress.kubernetes.io/target-group-attributes: >-
      deregistration_delay.timeout_seconds={DEREGISTRATION:.0f}
spec:
  terminationGracePeriodSeconds: 75
  lifecycle:
    preStop:
      sleep:
        seconds: {PRESTOP:.0f}
"""


def test_the_runs_were_made_with_the_numbers_of_deploy() -> None:
    """The numbers in deploy/ are those of the runs."""
    assert differences(ROOT / "deploy") == []


def test_the_runs_probe_the_urls_of_deploy() -> None:
    """Every recipe for an Envoy that is drained by hand has the URLs of the runs."""
    files = [file.read_text() for file in (ROOT / "deploy").rglob("*.yaml")]
    both = [line for text in files for line in text.splitlines() if ":15000/ready" in line]
    assert len(both) >= 3
    assert all(line.split()[-1] == BOTH for line in both)


def test_every_number_that_differs_is_told(tmp_path: Path) -> None:
    """Each number that deploy/ has otherwise makes one line, and none that agrees."""
    page = tmp_path / "all.yaml"
    page.write_text(AGREES)
    assert differences(tmp_path) == []
    for ours, other in (
        ('seconds: "10"', 'seconds: "15"'),
        ("delay.timeout_seconds=60", "delay.timeout_seconds=30"),
        (f"seconds: {PRESTOP:.0f}", "seconds: 5"),
        ("PeriodSeconds: 75", "PeriodSeconds: 30"),
    ):
        page.write_text(AGREES.replace(ours, other))
        assert len(differences(tmp_path)) == 1, other


def test_the_grace_period_covers_the_whole_end() -> None:
    """The grace period is longer than preStop and drain together by at least 5 s."""
    assert GRACE >= PRESTOP + DRAIN + 5

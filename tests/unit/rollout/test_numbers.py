import re
from pathlib import Path

import pytest

from bench.rollout import numbers
from bench.rollout.pods import BOTH_URLS

DEPLOY = Path(__file__).parents[3] / "deploy"
FILES = "\n".join(file.read_text() for file in DEPLOY.rglob("*.y*ml"))
# A livenessProbe's own grace period, its last field, is for a restart, not a pod's end.
PODS = re.sub(r"failureThreshold:.*\n\s*terminationGrace.*\n", "", FILES)


@pytest.mark.parametrize(
    ("pattern", "ours"),
    [
        # An Ingress's annotations, and the fields of a TargetGroupConfiguration.
        (r"(?:healthcheck-interval-seconds|healthCheckInterval):", numbers.INTERVAL),
        (r"(?:healthcheck-timeout-seconds|healthCheckTimeout):", numbers.TIMEOUT),
        (r"(?<!un)(?:healthy-threshold-count|healthyThresholdCount):", numbers.HEALTHY_THRESHOLD),
        (r"(?:unhealthy-threshold-count|unhealthyThresholdCount):", numbers.UNHEALTHY_THRESHOLD),
        (r"deregistration_delay\.timeout_seconds(?:=|\s+value:)", numbers.DEREGISTRATION),
        (r"terminationDrainDuration:", numbers.DRAIN),
        (r"preStop:\s+(?:\w+: null.*\s+)*sleep:.*\s+seconds:", numbers.PRESTOP),
        (r"terminationGracePeriodSeconds:", numbers.GRACE),
    ],
)
def test_the_runs_were_made_with_the_numbers_of_deploy(pattern: str, ours: float) -> None:
    """Every file in deploy/ that has one of these numbers has that of the runs."""
    assert {float(number) for number in re.findall(rf"{pattern}\W*(\d+)", PODS)} == {ours}


def test_the_runs_probe_the_urls_of_deploy() -> None:
    """Every recipe for an Envoy that is drained by hand has the URLs of the runs."""
    assert set(re.findall(r"value: (\S+:15000/ready)", FILES)) == {BOTH_URLS}

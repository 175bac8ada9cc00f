"""Every number of a run, in the cluster's seconds, and the factor that scales them.

`differences` compares the recommended numbers with deploy/.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

SCALE: Final = 5.0
"""The cluster's seconds in one of this machine. Real work (calls, Envoy, the bridges, the restart
of a killed bridge) is not scaled: it counts five times as long as in a cluster, to the disadvantage
of the bridges."""

# ---- what deploy/ recommends --------------------------------------------------------------------

PRESTOP: Final = 30.0
DRAIN: Final = 30.0
"""`terminationDrainDuration`: from SIGTERM to Envoy's end."""

GRACE: Final = 70.0
"""`terminationGracePeriodSeconds` is at least this: PRESTOP + DRAIN + DRAIN_DELAY + SHUTDOWN_GRACE
and 5 more, rounded up."""

DRAIN_DELAY: Final = 0.0
"""Of a native sidecar: SIGTERM comes after Envoy has ended."""

INTERVAL, TIMEOUT, HEALTHY_THRESHOLD, UNHEALTHY_THRESHOLD = 10.0, 5.0, 2, 2
DEREGISTRATION: Final = 60.0
GRPC_PATH, GRPC_MATCHER = "/grpc.health.v1.Health/Check", "0"

_NUMBER: Final = r"""["']?(\d+)"""
WHERE: Final[Mapping[str, float]] = {
    # An Ingress's annotations, and the fields of a TargetGroupConfiguration.
    rf"\b(?:healthcheck-interval-seconds|healthCheckInterval):\s*{_NUMBER}": INTERVAL,
    rf"\b(?:healthcheck-timeout-seconds|healthCheckTimeout):\s*{_NUMBER}": TIMEOUT,
    rf"\b(?:healthy-threshold-count|healthyThresholdCount):\s*{_NUMBER}": HEALTHY_THRESHOLD,
    rf"\b(?:unhealthy-threshold-count|unhealthyThresholdCount):\s*{_NUMBER}": UNHEALTHY_THRESHOLD,
    rf"deregistration_delay\.timeout_seconds(?:=|\s+value:\s*){_NUMBER}": DEREGISTRATION,
    rf"\bterminationDrainDuration:\s*{_NUMBER}s": DRAIN,
    rf"\bpreStop:\s+(?:\w+: null.*\s+)*sleep:.*\n\s+seconds:\s*{_NUMBER}": PRESTOP,
}
"""Patterns for the numbers in deploy/, and the numbers of the runs."""

# ---- ghealth's defaults -------------------------------------------------------------------------

CACHE_TTL, PROBE_TIMEOUT, SHUTDOWN_GRACE = 1.0, 3.0, 1.0

# ---- of other software, with sources ------------------------------------------------------------

ROUTING_LAG: Final = (10.0, 30.0)
"""Seconds after deregistration in which a node still sends new requests: kubernetes-sigs/
aws-load-balancer-controller#1064 and #2366, users' measurements; AWS documents none."""

CONTROLLER_LAG: Final = (1.0, 3.0)
"""From a change of the endpoints to the API call: an assumption, the same for all."""

CONNECT_TIMEOUT, IDLE_TIMEOUT = 10.0, 60.0
"""User guide, "Troubleshoot your Application Load Balancers", HTTP 504."""

STARTUP_PERIOD, READINESS_PERIOD, READINESS_FAILURES, READINESS_TIMEOUT = 1.0, 15.0, 4, 3.0
"""Of istio-proxy: Istio's defaults since 1.20 (upgrade notes; `global.proxy.readiness…`). The
initial delay, 0 or 1 s, is left out: Envoy needs longer."""

SIDECAR_START: Final = 0.5
"""From the start of the process until it listens: 0.3 to 0.4 s measured, with an idle core."""

ENVOY_START: Final = 5.0
"""From the container's start to its first configuration; the real Envoy here has it at once, so the
rest is injected. An assumption, the same for all."""

SLOW_START: Final = 40.0
SPOT_NOTICE: Final = 120.0
"""EC2 user guide, "Spot Instance interruption notices"."""

ENVOY_DRAIN_TIME: Final = 45.0
"""`--drain-time-s`, Istio's default (`drainDuration`)."""

PLEG: Final = 1.0
"""The kubelet examines its containers once a second."""


def differences(deploy: Path) -> list[str]:
    """Return the numbers in deploy/ that differ, one line each.

    Args:
        deploy: The directory; it may be missing.
    """
    found = []
    for file in sorted([*deploy.rglob("*.yaml"), *deploy.rglob("*.yml")]):
        # A livenessProbe's own grace period, its last field, is for a restart, not a pod's end.
        text = re.sub(r"failureThreshold:.*\n\s*terminationGrace.*\n", "", file.read_text())
        for pattern, ours in WHERE.items():
            found += [
                f"{file}: {' '.join(match[0].split())}, but the runs were made with {ours:.0f}"
                for match in re.finditer(pattern, text)
                if float(match[1]) != ours
            ]
        found += [
            f"{file}: {match[0]} is less than {GRACE:.0f}"
            for match in re.finditer(rf"\bterminationGracePeriodSeconds:\s*{_NUMBER}", text)
            if float(match[1]) < GRACE
        ]
    return found

"""Every number of a run, in the cluster's seconds, and the factor that scales them."""

from typing import Final

SCALE: Final = 5.0
"""The cluster's seconds in one of this machine. Real work (calls, Envoy, the bridges, the restart
of a killed bridge) is not scaled: it counts five times as long as in a cluster, to the disadvantage
of the bridges."""

READINESS, ENVOY_ADMIN, TRAFFIC = 15021, 15000, 15080
"""Ports of every pod. They are free, because each pod has a separate loopback address."""

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

# ---- ghealth's defaults -------------------------------------------------------------------------

CACHE_TTL, PROBE_TIMEOUT, SHUTDOWN_GRACE = 1.0, 3.0, 1.0

# ---- of other software, with sources ------------------------------------------------------------

ROUTING_LAG: Final = (10.0, 30.0)
"""Seconds after deregistration in which a node still sends new requests: kubernetes-sigs/
aws-load-balancer-controller#1064 and #2366, users' measurements; AWS documents none."""

CONTROLLER_LAG: Final = (1.0, 3.0)
"""From a change of the endpoints to the API call: an assumption, the same for all."""

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

"""What a deployment of an event has, by default as deploy/ has it."""

from dataclasses import dataclass
from typing import Final

from bench.rollout import numbers

READINESS: Final = "http://localhost:15021/healthz/ready"
BOTH: Final = f"{READINESS},http://localhost:15000/ready"
"""`GHEALTH_PROBE_URL` in deploy/ and docs/configuration.md for an Envoy that is drained by hand."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """The settings of a deployment and its target groups.

    Args:
        deregistration: The target groups' deregistration delay, in the cluster's seconds.
        startup_probe: Whether istio-proxy has one. Istio writes it only into the Deployment of a
            Gateway of the Gateway API (kube-gateway.yaml), not into a pod that its injector
            completes (gateway-injection-template.yaml).
        gates: Whether a new pod waits for the load balancer, by readiness gates.
        probe_url: What ghealth probes, with the ports of a cluster.
    """

    deregistration: float = numbers.DEREGISTRATION
    startup_probe: bool = False
    gates: bool = True
    probe_url: str = READINESS


AS_DEPLOYED: Final = Recipe()

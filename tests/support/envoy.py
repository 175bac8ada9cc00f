"""A real Envoy that checks ghealth's health, as the load balancer of a mesh does."""

import json
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from string import Template
from typing import Any

import yaml

from tests.support.certificates import CERT, KEY
from tests.support.gateway import ENVOY, free_port

HOST = "127.0.0.1"
_TIMEOUT = 30.0


@contextmanager
def checker(
    port: int, *, authority: Path | None = None, pair: Path | None = None
) -> Iterator[Callable[[], str]]:
    """Run an Envoy whose only cluster is ghealth; yield a function that returns the host's health.

    This is `healthy`, the flags of an unhealthy host, `undecided` or `not started`.

    Args:
        port: ghealth's port.
        authority: A PEM file with the authority that it trusts, for TLS.
        pair: A folder with a client certificate and its key.
    """
    admin_port = free_port()
    text = Path(__file__).with_name("envoy.yaml").read_text()
    config = yaml.safe_load(Template(text).substitute(port=port, admin_port=admin_port))
    if authority:
        (cluster,) = config["static_resources"]["clusters"]
        cluster["transport_socket"] = _transport(authority, pair)
    command = (ENVOY, "--config-yaml", json.dumps(config), "--disable-hot-restart")
    process = subprocess.Popen(
        [*command, "--concurrency", "1"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        yield lambda: _opinion(admin_port)
    finally:
        process.kill()
        process.wait()


def _opinion(admin_port: int) -> str:
    admin = HTTPConnection(HOST, admin_port, timeout=_TIMEOUT)
    try:
        # Before its first check has ended, Envoy flags every host as failed.
        admin.request("GET", "/stats?usedonly&filter=health_check.(success%7Cfailure)")
        if not admin.getresponse().read():
            return "undecided"
        admin.request("GET", "/clusters?format=json")
        (cluster,) = json.load(admin.getresponse())["cluster_statuses"]
    except (OSError, HTTPException):
        return "not started"
    finally:
        admin.close()
    flags = cluster["host_statuses"][0]["health_status"]
    return " ".join(flag for flag, up in flags.items() if up is True) or "healthy"


def _transport(authority: Path, pair: Path | None) -> dict[str, Any]:
    """Configure TLS that verifies the server for `localhost`."""
    tls: dict[str, Any] = {
        "validation_context": {
            "trusted_ca": {"filename": str(authority)},
            "match_typed_subject_alt_names": [
                {"san_type": "DNS", "matcher": {"exact": "localhost"}}
            ],
        },
        "alpn_protocols": ["h2"],
    }
    if pair is not None:
        files = {"certificate_chain": pair / CERT, "private_key": pair / KEY}
        tls["tls_certificates"] = [{name: {"filename": str(at)} for name, at in files.items()}]
    context = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext"
    return {
        "name": "envoy.transport_sockets.tls",
        "typed_config": {"@type": context, "common_tls_context": tls, "sni": "localhost"},
    }

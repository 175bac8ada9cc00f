"""What Kubernetes, the custom resources and Istio's chart allow."""

import json
from collections.abc import Iterator
from typing import Any, Final

import jsonschema
import kubernetes_validate
import yaml

from tests.deploy.recipes import ROOT

SCHEMAS: Final = ROOT.parent / "shared" / "schemas"
"""Schemas of other projects, not to be copied into this one; a clone alone does without them."""

SIDECARS, SLEEP_ACTION = "1.29", "1.30"
"""The first versions of Kubernetes with native sidecars and with the preStop action `sleep`."""

NEWEST: Final[str] = kubernetes_validate.latest_version()

_GROUPS: Final = ("networking.k8s.io", "rbac.authorization.k8s.io")
"""The groups with a dot that Kubernetes itself has."""


def faults(found: Any) -> Iterator[str]:
    """Yield what is wrong with an object; unknown fields are."""
    group, _, version = found["apiVersion"].rpartition("/")
    if "." not in group or group in _GROUPS:
        oldest = SLEEP_ACTION if "'sleep': {" in str(found) else SIDECARS
        for kubernetes in (oldest, NEWEST):
            try:
                kubernetes_validate.validate(found, kubernetes, strict=True)
            except kubernetes_validate.ValidationError as error:
                yield f"{found['kind']} on Kubernetes {kubernetes}: {error.message}"
    for file in SCHEMAS.glob(f"*.{found['kind'].lower()}s.crd.yaml"):
        definition = next(yaml.safe_load_all(file.read_text()))["spec"]
        offered = {it["name"]: it["schema"]["openAPIV3Schema"] for it in definition["versions"]}
        if group == definition["group"]:
            yield from _against(_strict(offered[version]), found)


def _strict(schema: Any) -> Any:
    """Make a schema refuse the fields that it does not know."""
    if not isinstance(schema, dict):
        return schema
    closed = {"additionalProperties": False} if isinstance(schema.get("properties"), dict) else {}
    return closed | {name: _strict(part) for name, part in schema.items()}


def chart(values: Any) -> Iterator[str]:
    """Check Helm values against the gateway chart's schema, if it is at hand."""
    for file in SCHEMAS.glob("istio-gateway-*.values.schema.json"):
        draft = {"$schema": "http://json-schema.org/draft-07/schema#"}
        yield from _against(json.loads(file.read_text()) | draft, values)


def _against(schema: Any, found: Any) -> Iterator[str]:
    for error in jsonschema.Draft7Validator(schema).iter_errors(found):
        yield f"{error.json_path}: {error.message}"

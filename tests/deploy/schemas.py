"""What Kubernetes, the custom resources and Istio's chart allow."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import jsonschema
import kubernetes_validate
import yaml

from tests.deploy.tools import ROOT

SCHEMAS: Final = ROOT.parent / "shared" / "schemas"
"""Schemas of other projects, not to be copied into this one; a clone alone does without them."""

SIDECARS, SLEEP_ACTION = "1.29", "1.30"
"""The first versions of Kubernetes with native sidecars and with the preStop action `sleep`."""

NEWEST: Final[str] = kubernetes_validate.latest_version()


def _is_custom(found: Any) -> bool:
    group = found["apiVersion"].rpartition("/")[0]
    own = "." not in group or group.endswith(".k8s.io")
    return not own or group == "gateway.networking.k8s.io"


def faults(found: Any) -> Iterator[str]:
    """Yield what is wrong with an object; unknown fields are."""
    if not _is_custom(found):
        oldest = SLEEP_ACTION if "'sleep': {" in str(found) else SIDECARS
        for version in (oldest, NEWEST):
            try:
                kubernetes_validate.validate(found, version, strict=True)
            except kubernetes_validate.ValidationError as error:
                yield f"{found['kind']} on Kubernetes {version}: {error.message}"
    elif not found["apiVersion"].startswith("eks.amazonaws.com/"):
        for file in SCHEMAS.glob(f"*.{found['kind'].lower()}s.crd.yaml"):
            yield from _custom_faults(found, file)


def _custom_faults(found: Any, file: Path) -> list[str]:
    definition = next(iter(yaml.safe_load_all(file.read_text())))
    version = found["apiVersion"].rpartition("/")[2]
    for offered in definition["spec"]["versions"]:
        if offered["name"] == version:
            return _against(_strict(offered["schema"]["openAPIV3Schema"]), found)
    return [f"the controller knows no version {version} of {found['kind']}"]


def _strict(schema: Any) -> Any:
    """Make a schema refuse the fields that it does not know."""
    if isinstance(schema, list):
        return [_strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {"additionalProperties": False} if isinstance(schema.get("properties"), dict) else {}
    return closed | {name: _strict(part) for name, part in schema.items()}


def chart(values: Any) -> Iterator[str]:
    """Check Helm values against the gateway chart's schema, if it is at hand."""
    for file in SCHEMAS.glob("istio-gateway-*.values.schema.json"):
        draft = {"$schema": "http://json-schema.org/draft-07/schema#"}
        yield from _against(json.loads(file.read_text()) | draft, values)


def _against(schema: Any, found: Any) -> list[str]:
    validator = jsonschema.Draft7Validator(schema)
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(found)]

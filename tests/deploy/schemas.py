"""What Kubernetes and the custom resources allow."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import jsonschema
import kubernetes_validate
import yaml
from kubernetes_validate.utils import all_versions, major_minor

from tests.deploy.recipes import Recipe
from tests.deploy.tools import ROOT

SCHEMAS: Final = ROOT.parent / "shared" / "schemas"
"""Schemas of other projects, not to be copied into this one; a clone alone does without them."""


def is_custom(found: Any) -> bool:
    """Return whether an object's kind is none of Kubernetes' own."""
    group = found["apiVersion"].rpartition("/")[0]
    own = "." not in group or group.endswith(".k8s.io")
    return not own or group == "gateway.networking.k8s.io"


def versions(oldest: str) -> list[str]:
    """Return the versions of Kubernetes that have a schema, from the oldest on."""
    known = map(major_minor, all_versions())
    return [version for version in known if _number(version) >= _number(oldest)]


def _number(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


def kubernetes(recipe: Recipe) -> Iterator[str]:
    """Check fields and types in every version of Kubernetes that a recipe is for, strictly."""
    for found in recipe.objects:
        if is_custom(found):
            continue
        for version in versions(recipe.oldest):
            try:
                kubernetes_validate.validate(found, version, strict=True)
            except (
                kubernetes_validate.ValidationError,
                kubernetes_validate.SchemaNotFoundError,
            ) as e:
                yield f"{recipe.name}: {found['kind']} on Kubernetes {version}: {e.message}"


def custom(recipe: Recipe) -> Iterator[str]:
    """Check custom resources against the definitions at hand; unknown fields are faults."""
    for found in recipe.objects:
        if not is_custom(found) or found["apiVersion"].startswith("eks.amazonaws.com/"):
            continue
        for file in SCHEMAS.glob(f"*.{found['kind'].lower()}s.crd.yaml"):
            for fault in _against_definition(found, file):
                yield f"{recipe.name}: {found['kind']}: {fault}"


def _against_definition(found: Any, file: Path) -> list[str]:
    definition = next(iter(yaml.safe_load_all(file.read_text())))
    version = found["apiVersion"].rpartition("/")[2]
    for offered in definition["spec"]["versions"]:
        if offered["name"] == version:
            return _faults(_strict(offered["schema"]["openAPIV3Schema"]), found)
    return [f"the controller knows no version {version}"]


def _strict(schema: Any) -> Any:
    """Make a schema refuse the fields that it does not know."""
    if isinstance(schema, list):
        return [_strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {"additionalProperties": False} if isinstance(schema.get("properties"), dict) else {}
    return closed | {name: _strict(part) for name, part in schema.items()}


def chart(name: str, values: Any) -> Iterator[str]:
    """Check Helm values against the gateway chart's own schema, if it is at hand."""
    for file in SCHEMAS.glob("istio-gateway-*.values.schema.json"):
        schema = json.loads(file.read_text()) | {
            "$schema": "http://json-schema.org/draft-07/schema#"
        }
        for fault in _faults(schema, values):
            yield f"{name}: {fault}"


def _faults(schema: Any, found: Any) -> list[str]:
    validator = jsonschema.Draft7Validator(schema)
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(found)]

"""Puts faults into a copy of deploy/: the fact that each one concerns must fail."""

import inspect
import shutil
from collections.abc import Callable
from pathlib import Path
from subprocess import CalledProcessError
from typing import Final

import pytest

from tests.deploy import recipes
from tests.deploy import test_facts as facts

TRIED_BY: Final = {
    facts.VALUES: "Helm 4",
    facts.DRAIN_VALUES: "Helm 3",
    facts.PATCH: "kustomize on istioctl's",
    facts.GATEWAY_API: "Gateway API",
    facts.PROBE: "kustomize with traffic-probe",
    facts.PROBE_TLS: "kustomize with traffic-probe-tls",
}
"""The way to install that a file is tried by; others by the example."""

NOTICED: Final = (AssertionError, LookupError, ValueError, CalledProcessError)


@pytest.mark.parametrize(
    ("fact", "file", "before", "after"),
    facts.FAULTS,
    ids=lambda part: part.__name__ if callable(part) else part.strip(),
)
def test_a_fault_is_noticed(
    tmp_path: Path, fact: Callable[..., None], file: str, before: str, after: str
) -> None:
    """With the fault, the fact fails, or what it needs cannot be rendered."""
    broken = tmp_path / "deploy"
    shutil.copytree(recipes.DEPLOY, broken)
    text = (broken / file).read_text()
    assert before in text
    (broken / file).write_text(text.replace(before, after))
    way = TRIED_BY.get(file, "kustomize/example")
    source = file if file in facts.FILES else way
    arguments = {"deploy": broken, "way": way, "source": source, "folder": "ingress", "name": file}
    wanted = inspect.signature(fact).parameters
    with pytest.raises(NOTICED):
        fact(**{key: value for key, value in arguments.items() if key in wanted})

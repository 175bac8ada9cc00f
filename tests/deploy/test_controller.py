"""Compares the model of the controller with what the controller itself built."""

from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from tests.deploy import controller

RECORDED: Final[dict[str, Any]] = {
    found["name"]: found
    for found in yaml.safe_load_all((Path(__file__).parent / "recorded.yaml").read_text())
}


@pytest.mark.parametrize("name", RECORDED)
def test_the_model_builds_what_the_controller_builds(name: str) -> None:
    """From each recorded input the model builds what version 3.5.0 of the controller built."""
    objects, expected = RECORDED[name]["objects"], RECORDED[name]["built"]
    try:
        built = controller.build(tuple(objects))
    except controller.RefusedError as error:
        built = {"refused": str(error)}
    assert built == expected

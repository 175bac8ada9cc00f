import pytest

import ghealth
from ghealth import probe, settings
from ghealth.server import serve


def test_the_public_names_can_be_imported() -> None:
    """Everything else is private."""
    public = [probe.Probe, probe.ProbeResult, settings.Settings, serve.serve]
    assert [getattr(ghealth, name) for name in ghealth.__all__] == public


def test_other_names_are_not_there() -> None:
    """A misspelt name is an error as for any module."""
    with pytest.raises(AttributeError, match="module 'ghealth' has no attribute 'server_'"):
        _ = ghealth.server_

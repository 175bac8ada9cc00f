from pathlib import Path

import pytest

from ghealth.health import GATEWAY, LIVENESS
from ghealth.probe import AllOf
from ghealth.server.prepare import Prepared, configure
from ghealth.settings import Mistakes


def variables_of_mistakes(monkeypatch: pytest.MonkeyPatch, **variables: str) -> list[str]:
    """Set variables, and return those that the mistakes name."""
    monkeypatch.delenv("SSL_CERT_DIR", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    found = configure()
    return [line.split(":")[0] for line in found.lines] if isinstance(found, Mistakes) else []


def test_each_service_has_a_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gateway comes first and `liveness`, which has no probe, last; secrets are masked."""
    monkeypatch.setenv("GHEALTH_PROBE_URL", "http://me:s3cret@a/,http://b/?s3cret")
    monkeypatch.setenv("GHEALTH_SERVICES", '{"c": "http://d/"}')
    found = configure()
    assert isinstance(found, Prepared)
    several = ("http://***@a/", "http://b/?***")
    assert list(found.urls.items()) == [(GATEWAY, several), ("c", ("http://d/",)), (LIVENESS, ())]
    assert list(found.probes) == [GATEWAY, "c"]
    assert isinstance(found.probes[GATEWAY], AllOf)
    assert found.certificate is None


def test_mistakes_in_settings_and_files_are_one_list(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A person corrects everything at once; an invalid value causes no further mistake."""
    file = tmp_path / "file"
    file.write_text("x")
    files = dict.fromkeys(("GHEALTH_TLS_CERT_FILE", "GHEALTH_TLS_KEY_FILE"), str(file))
    values = dict.fromkeys(("GHEALTH_PROBE_HEADERS", "GHEALTH_CACHE_TTL", "GHEALTH_QUUX"), "x")
    places = {"GHEALTH_TLS_LISTEN": "127.0.0.1:0", "GHEALTH_PROBE_URL": "https://gw/"}
    found = variables_of_mistakes(monkeypatch, SSL_CERT_FILE="/gone", **files, **values, **places)
    assert found == [*values, "SSL_CERT_FILE", "GHEALTH_TLS_CERT_FILE"]
    found = variables_of_mistakes(monkeypatch, **dict.fromkeys(places, "x"))
    assert found == [*places, *values]


@pytest.mark.parametrize(
    ("name", "value", "mistakes"),
    [
        ("PROBE_URL", "http://a/,https://gw/", ["SSL_CERT_FILE"]),
        ("SERVICES", '{"a": "https://gw/"}', ["SSL_CERT_FILE"]),
        ("SERVICES", '{"a": "http://gw/"}', []),
    ],
)
def test_a_trust_store_that_cannot_be_read_is_a_mistake_with_https_targets(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, mistakes: list[str]
) -> None:
    """OpenSSL ignores it silently, and every probe by https would fail; others do not need it."""
    monkeypatch.setenv(f"GHEALTH_{name}", value)
    assert variables_of_mistakes(monkeypatch, SSL_CERT_FILE="/gone") == mistakes

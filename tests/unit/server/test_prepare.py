import ssl
from pathlib import Path

import pytest

from ghealth.health import GATEWAY, LIVENESS
from ghealth.probe import AllOf, ProbeResult
from ghealth.server.prepare import Prepared, configure, prepare
from ghealth.settings import Mistakes, Settings


@pytest.fixture(autouse=True)
def _no_certificates_are_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine's own choice of certificates is not tested."""
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    monkeypatch.delenv("SSL_CERT_DIR", raising=False)


def mistakes(monkeypatch: pytest.MonkeyPatch, **variables: str) -> tuple[str, ...]:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    found = configure()
    return found.lines if isinstance(found, Mistakes) else ()


async def ready() -> ProbeResult:
    return ProbeResult.because("", ready=True)


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


async def test_custom_probes_replace_targets() -> None:
    """Their URLs are not probed, so they need neither certificates nor a valid request."""
    settings = Settings.model_validate({"probe_url": "https://gw/", "services": {"a": "http://b/"}})
    found = prepare(settings, {"own": ready, GATEWAY: ready})
    assert isinstance(found, Prepared)
    assert found.urls == {GATEWAY: (), "a": ("http://b/",), "own": (), LIVENESS: ()}
    assert list(found.probes) == [GATEWAY, "a", "own"]
    assert (await found.probes[GATEWAY]()).ready


def test_a_custom_probe_for_liveness_is_a_mistake() -> None:
    """`liveness` is the process itself."""
    found = prepare(Settings(), {LIVENESS: ready})
    assert isinstance(found, Mistakes)
    assert found.lines == ("probes: 'liveness' is reserved; expected other names",)


def test_mistakes_in_settings_and_files_are_one_list(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A person corrects everything at once; an invalid value causes no further mistake."""
    for variable in ("GHEALTH_TLS_CERT_FILE", "GHEALTH_TLS_KEY_FILE"):
        path = tmp_path / variable
        path.write_text("x")
        monkeypatch.setenv(variable, str(path))
    lines = mistakes(
        monkeypatch,
        SSL_CERT_FILE="/gone",
        GHEALTH_TLS_LISTEN="127.0.0.1:0",
        GHEALTH_PROBE_URL="https://gw/",
        GHEALTH_PROBE_HEADERS="x",
        GHEALTH_CACHE_TTL="x",
        GHEALTH_QUUX="x",
    )
    settings = ["GHEALTH_PROBE_HEADERS", "GHEALTH_CACHE_TTL", "GHEALTH_QUUX"]
    files = ["SSL_CERT_FILE", "GHEALTH_TLS_CERT_FILE"]
    assert [line.split(":")[0] for line in lines] == settings + files
    lines = mistakes(monkeypatch, GHEALTH_TLS_LISTEN="x", GHEALTH_PROBE_URL="x")
    invalid = ["GHEALTH_TLS_LISTEN", "GHEALTH_PROBE_URL"]
    assert [line.split(":")[0] for line in lines] == invalid + settings


@pytest.mark.parametrize(
    "variables",
    [
        {"GHEALTH_PROBE_URL": "http://a/,https://gw/"},
        {"GHEALTH_SERVICES": '{"a": "https://gw/"}'},
    ],
    ids=str,
)
def test_a_trust_store_that_cannot_be_read_is_a_mistake(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]
) -> None:
    """OpenSSL ignores it silently, and every probe by https would fail."""
    (line,) = mistakes(monkeypatch, SSL_CERT_FILE="/gone", **variables)
    assert line.startswith("SSL_CERT_FILE: /gone: No such file or directory; ")


def test_certificates_matter_only_to_https(monkeypatch: pytest.MonkeyPatch) -> None:
    """With http targets, nothing reads them, also if OpenSSL cannot make a context."""
    monkeypatch.setattr(ssl, "create_default_context", None)
    assert mistakes(monkeypatch, SSL_CERT_FILE="/gone") == ()

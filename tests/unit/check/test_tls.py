import ssl
from pathlib import Path
from typing import Any

import pytest

from ghealth.check import tls
from tests.unit.check.servers import authority


def test_the_systems_authorities_are_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without --tls-ca-cert SSL_CERT_FILE counts, or the distribution's file; with it, neither."""
    file = tmp_path / "bundle.pem"
    authority().cert_pem.write_to_path(str(file))
    monkeypatch.setenv("SSL_CERT_FILE", str(file))
    assert len(tls.client_context().get_ca_certs()) == 1
    monkeypatch.setenv("SSL_CERT_FILE", "/nonexistent")
    monkeypatch.setattr(tls, "_SYSTEM_FILES", ("/nonexistent", str(file)))
    assert len(tls.client_context().get_ca_certs()) == 1
    monkeypatch.setattr(tls, "_SYSTEM_FILES", ())
    assert tls.client_context().get_ca_certs() == []
    monkeypatch.setenv("SSL_CERT_DIR", "/nonexistent")
    assert tls.client_context().get_ca_certs() == []
    assert len(tls.client_context(ca_cert=str(file)).get_ca_certs()) == 1
    assert tls.client_context(verify=False).get_ca_certs() == []


def test_a_folder_of_authorities_is_trusted_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenSSL reads the files of SSL_CERT_DIR when it needs one."""
    loaded = []

    def load(_: ssl.SSLContext, *paths: str | None) -> None:
        loaded.append(paths)

    monkeypatch.setattr(ssl.SSLContext, "load_verify_locations", load)
    monkeypatch.setattr(tls, "_SYSTEM_FILES", ())
    monkeypatch.setenv("SSL_CERT_FILE", "/nonexistent")
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))
    tls.client_context()
    assert loaded == [(None, str(tmp_path))]


def test_certificates_that_go_accepts_are_accepted() -> None:
    """Python 3.13's default context is stricter (VERIFY_X509_STRICT), Go's about names."""
    context = tls.client_context()
    assert not context.verify_flags & ssl.VERIFY_X509_STRICT
    assert context.verify_flags & ssl.VERIFY_X509_PARTIAL_CHAIN
    assert not context.hostname_checks_common_name


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"ca_cert": "/nonexistent"}, "/nonexistent: No such file or directory"),
        ({"ca_cert": __file__}, f"{__file__}: no certificates in it"),
        (
            {"client_cert": __file__, "client_key": __file__},
            f"{__file__} and {__file__}: not a certificate and its key",
        ),
    ],
)
def test_files_that_cannot_be_used(fields: dict[str, Any], text: str) -> None:
    """A file that cannot be read, or has something else in it, is found before connecting."""
    with pytest.raises(tls.TlsError) as error:
        tls.client_context(**fields)
    assert str(error.value) == text


def test_the_systems_file_that_cannot_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """SSL_CERT_FILE with something else in it is named."""
    monkeypatch.setenv("SSL_CERT_FILE", __file__)
    with pytest.raises(tls.TlsError, match=r"test_tls\.py: no certificates in it"):
        tls.client_context()

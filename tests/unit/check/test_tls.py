import re
import ssl
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from ghealth.check import tls


def trusted(**flags: Any) -> int:
    """Count the authorities that a check trusts."""
    return len(tls.client_context(**flags).get_ca_certs())


def test_the_systems_authorities_are_trusted(
    pem: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without --tls-ca-cert SSL_CERT_FILE counts, or the distribution's file; with it, neither."""
    monkeypatch.setenv("SSL_CERT_FILE", pem["ca_cert"])
    monkeypatch.setattr(tls, "_SYSTEM_FILES", ())
    assert trusted() == 1
    monkeypatch.setenv("SSL_CERT_FILE", "/nonexistent")
    monkeypatch.setattr(tls, "_SYSTEM_FILES", ("/nonexistent", pem["ca_cert"]))
    assert trusted() == 1
    monkeypatch.setattr(tls, "_SYSTEM_FILES", ())
    assert trusted() == 0
    monkeypatch.setenv("SSL_CERT_DIR", "/nonexistent")
    assert trusted() == 0
    assert trusted(ca_cert=pem["ca_cert"]) == 1
    assert trusted(verify=False) == 0


def test_a_folder_of_authorities_is_trusted_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenSSL reads the files of SSL_CERT_DIR when it needs one."""
    load = Mock()
    monkeypatch.setattr(ssl.SSLContext, "load_verify_locations", load)
    monkeypatch.setattr(tls, "_SYSTEM_FILES", ())
    monkeypatch.setenv("SSL_CERT_FILE", "/nonexistent")
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))
    tls.client_context()
    load.assert_called_once_with(None, str(tmp_path))


def test_certificates_that_go_accepts_are_accepted() -> None:
    """Python 3.13's default context is stricter (VERIFY_X509_STRICT), Go's about names."""
    context = tls.client_context()
    assert not context.verify_flags & ssl.VERIFY_X509_STRICT
    assert context.verify_flags & ssl.VERIFY_X509_PARTIAL_CHAIN
    assert not context.hostname_checks_common_name


FILE = __file__
MISTAKES = {
    "/nonexistent: No such file or directory": {"ca_cert": "/nonexistent"},
    f"{FILE}: no certificates in it": {"ca_cert": FILE},
    f"{FILE} and {FILE}: not a certificate and its key": {"client_cert": FILE, "client_key": FILE},
}


@pytest.mark.parametrize(("text", "fields"), MISTAKES.items())
def test_files_that_cannot_be_used(text: str, fields: dict[str, Any]) -> None:
    """A file that cannot be read, or has something else in it, is found before connecting."""
    with pytest.raises(tls.TlsError, match=f"^{re.escape(text)}$"):
        tls.client_context(**fields)


def test_the_systems_file_that_cannot_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """SSL_CERT_FILE with something else in it is named."""
    monkeypatch.setenv("SSL_CERT_FILE", __file__)
    with pytest.raises(tls.TlsError, match=r"test_tls\.py: no certificates in it"):
        tls.client_context()

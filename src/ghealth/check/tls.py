"""TLS for checks: the trusted authorities, the client's certificate, or no verification at all."""

import os
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

_SYSTEM_FILES: Final = (
    "/etc/ssl/certs/ca-certificates.crt",  # Debian, Alpine
    "/etc/pki/tls/certs/ca-bundle.crt",  # Fedora, RHEL
    "/etc/ssl/cert.pem",
)
"""Certificates of the authorities in distributions; Python's OpenSSL may use other files."""


class TlsError(Exception):
    """TLS cannot be used as the flags demand; the message has the cause."""


def client_context(
    *, verify: bool = True, ca_cert: str = "", client_cert: str = "", client_key: str = ""
) -> ssl.SSLContext:
    """Create a context for a check. An empty text is an unset flag.

    Args:
        verify: Whether to verify the server's certificate.
        ca_cert: PEM file with the trusted authorities; by default the system's.
        client_cert: PEM file with the client's certificate.
        client_key: PEM file with its key.

    Raises:
        TlsError: If a file cannot be used, or TLS at all.
    """
    # OpenSSL may have no ciphers, for example in FIPS mode without the provider for it.
    with _mistakes("TLS cannot be used"):
        # Not `create_default_context`: from Python 3.13 on it refuses certificates that Go accepts.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.set_alpn_protocols(["h2"])
    # As in Go: any trusted certificate ends a chain, and names are alternative names only.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.hostname_checks_common_name = False
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif ca_cert:
        with _mistakes(ca_cert, "no certificates in it"):
            context.load_verify_locations(ca_cert)
    else:
        _trust_system(context)
    if client_cert:
        with _mistakes(f"{client_cert} and {client_key}", "not a certificate and its key"):
            context.load_cert_chain(client_cert, client_key, password=str)
    return context


def _trust_system(context: ssl.SSLContext) -> None:
    """Trust `SSL_CERT_FILE` and `SSL_CERT_DIR`, or the usual places."""
    paths = ssl.get_default_verify_paths()
    names = (paths.cafile, *_SYSTEM_FILES)
    file = next((name for name in names if name and os.path.isfile(name)), None)  # noqa: PTH113 - pathlib takes 4 ms
    if file or paths.capath:
        with _mistakes(str(file), "no certificates in it"):
            context.load_verify_locations(file, paths.capath)


@contextmanager
def _mistakes(what: str, problem: str = "") -> Iterator[None]:
    try:
        yield
    except ssl.SSLError as error:
        raise TlsError(f"{what}: {problem or error.reason}") from None
    except OSError as error:
        raise TlsError(f"{what}: {error.strerror}") from None

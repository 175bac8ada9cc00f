"""TLS for checks: the trusted authorities, the client's certificate, or no verification at all."""

import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_SYSTEM_FILES: Final = (
    "/etc/ssl/certs/ca-certificates.crt",  # Debian, Alpine
    "/etc/pki/tls/certs/ca-bundle.crt",  # Fedora, RHEL
    "/etc/ssl/cert.pem",
)
"""Certificates of the authorities in distributions; Python's OpenSSL may use other files."""


class CertificateError(Exception):
    """A file cannot be used; the message names it and the cause."""


@dataclass(frozen=True, slots=True)
class Tls:
    """How a check uses TLS. An empty text is an unset flag.

    Args:
        verify: Whether to verify the server's certificate.
        ca_cert: PEM file with the trusted authorities; by default the system's.
        client_cert: PEM file with the client's certificate.
        client_key: PEM file with its key.
        server_name: The name that the server's certificate must have; by default its host.
    """

    verify: bool = True
    ca_cert: str = ""
    client_cert: str = ""
    client_key: str = ""
    server_name: str = ""

    def context(self) -> ssl.SSLContext:
        """Create a context that does not verify the server's certificate.

        Raises:
            CertificateError: If a file cannot be used, one for verification too.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.set_alpn_protocols(["h2"])
        if self.ca_cert:
            try:
                context.load_verify_locations(self.ca_cert)
            except OSError as error:
                raise _unusable(self.ca_cert, "no certificates in it", error) from None
        if self.client_cert:
            pair = f"{self.client_cert} and {self.client_key}"
            try:
                context.load_cert_chain(self.client_cert, self.client_key, password=str)
            except OSError as error:
                raise _unusable(pair, "not a certificate and its key", error) from None
        return context

    def roots(self) -> bytes | None:
        """Return the trusted authorities in PEM; None if the system has none."""
        return Path(self.ca_cert).read_bytes() if self.ca_cert else _system_roots()

    def client_pair(self) -> tuple[bytes | None, bytes | None]:
        """Return the client's key and its certificate in PEM."""
        if not self.client_cert:
            return None, None
        return Path(self.client_key).read_bytes(), Path(self.client_cert).read_bytes()


def _unusable(files: str, problem: str, error: OSError) -> CertificateError:
    # An SSLError is an OSError, too.
    why = problem if isinstance(error, ssl.SSLError) else error.strerror
    return CertificateError(f"{files}: {why}")


def _system_roots() -> bytes | None:
    """Read the system's authorities: `SSL_CERT_FILE` and `SSL_CERT_DIR`, or the usual places."""
    paths = ssl.get_default_verify_paths()
    bundles = [Path(name) for name in (paths.cafile, *_SYSTEM_FILES) if name]
    files = [file for file in bundles if file.is_file()][:1]
    if paths.capath:
        files += sorted(Path(paths.capath).glob("*.0"))
    return b"\n".join(file.read_bytes() for file in files) or None

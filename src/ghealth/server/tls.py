"""Certificates: the server's, which follows its files, and the trusted ones."""

import base64
import codecs
import logging
import os
import re
import ssl
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import grpc

from ghealth.events import log_event

_log = logging.getLogger(__name__)

_CERT: Final = "GHEALTH_TLS_CERT_FILE"
_KEY: Final = "GHEALTH_TLS_KEY_FILE"
_CLIENT_CA: Final = "GHEALTH_TLS_CLIENT_CA_FILE"
_OPENSSL: Final = "OPENSSL_CONF"
"""With the configuration of FIPS but without its provider, OpenSSL has no ciphers."""


@dataclass(frozen=True, slots=True)
class Files:
    """PEM files of a server.

    Args:
        cert: Its certificate chain.
        key: The private key.
        client_ca: The authorities that client certificates are verified against; None to require
            no client certificates.
    """

    cert: Path
    key: Path
    client_ca: Path | None


class CertificateError(Exception):
    """A certificate, a key or OpenSSL cannot be used.

    The message is one line: the variable, its value, what is wrong with it and what is expected.
    """


class ServerCertificate:
    """A server's certificate that follows its files.

    Args:
        files: The files.

    Raises:
        CertificateError: If they are not valid now.
    """

    def __init__(self, files: Files) -> None:
        self._files = files
        self._lock = threading.Lock()
        self._problem = ""
        self._contents = _verified(files)

    def credentials(self) -> grpc.ServerCredentials:
        """Return gRPC's credentials for one port; each port has separate ones.

        gRPC asks them at each handshake whether the certificate has changed.
        """
        used = self._current()

        def changed() -> "grpc.ServerCertificateConfiguration | None":
            nonlocal used
            current = self._current()
            if current is used:
                return None
            used = current
            return _configuration(used)

        return grpc.dynamic_ssl_server_credentials(
            _configuration(used),
            # None keeps the certificate in use; the type stubs lack it.
            changed,  # type: ignore[arg-type]
            require_client_authentication=self._files.client_ca is not None,
        )

    def _current(self) -> "_Contents":
        """Return what the files contain, or what they contained when they were valid.

        gRPC's threads call it at each handshake: it must be quick and must not raise.
        """
        with self._lock:
            try:
                if _read(self._files) != self._contents:
                    # At each handshake while they are not valid: it takes 1 ms, and the cause may
                    # be a lack of descriptors that is soon over.
                    self._contents = _verified(self._files)
                    message = "serving with the new certificate"
                    log_event(_log, logging.INFO, "certificate_replaced", message)
                self._problem = ""
            except CertificateError as error:
                problem = str(error)
                if problem != self._problem:
                    self._problem = problem
                    message = f"the new certificate cannot be used, the old one stays: {problem}"
                    log_event(
                        _log, logging.WARNING, "certificate_rejected", message, reason=problem
                    )
            return self._contents


def trust_store() -> ssl.SSLContext:
    """Read the certificates of the system, or of `SSL_CERT_FILE` and `SSL_CERT_DIR`.

    Raises:
        CertificateError: If there are none, or OpenSSL has no ciphers.
    """
    needed = "since a target has an https URL"
    with _naming(_OPENSSL, os.environ.get(_OPENSSL, "unset"), f"ciphers, {needed}"):
        context = ssl.create_default_context()
    # Python 3.13 sets it, and would refuse certificates that Go and Python 3.12 accept: those of
    # private authorities often lack an extension.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    # OpenSSL ignores what it cannot read silently.
    cafile, capath = os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR")
    if cafile:
        with _naming("SSL_CERT_FILE", cafile, f"a PEM file, {needed}"):
            context.load_verify_locations(cafile)
    if capath and not all(map(os.path.isdir, capath.split(os.pathsep))):
        raise CertificateError(f"SSL_CERT_DIR: {capath}: not a folder; expected folders, {needed}")
    paths = ssl.get_default_verify_paths()
    if not (cafile or capath or paths.cafile or paths.capath):
        places = f"{paths.openssl_cafile} or {paths.openssl_capath}"
        raise CertificateError(
            f"SSL_CERT_FILE: unset, and no certificates in {places}; expected a PEM file, {needed}"
        )
    return context


_Contents = tuple[bytes, bytes, bytes]
"""The certificate chain, the key and the authorities of clients, empty without one."""


def _configuration(contents: _Contents) -> grpc.ServerCertificateConfiguration:
    cert, key, client_ca = contents
    return grpc.ssl_server_certificate_configuration(
        [(key, cert)], root_certificates=client_ca or None
    )


def _read(files: Files) -> _Contents:
    def contents(variable: str, path: Path | None) -> bytes:
        with _naming(variable, path):
            # After a byte order mark, gRPC's BoringSSL does not find the PEM.
            return b"" if path is None else path.read_bytes().replace(codecs.BOM_UTF8, b"")

    cert, key = contents(_CERT, files.cert), contents(_KEY, files.key)
    return cert, key, contents(_CLIENT_CA, files.client_ca)


_READS: Final = 3


def _verified(files: Files) -> _Contents:
    """Read the files and verify them.

    OpenSSL reads the files itself, and Kubernetes can replace them meanwhile: what it has found is
    true only of contents that are the same before and after.
    """
    for _ in range(_READS):
        contents, problem = _read(files), None
        try:
            _verify(files, contents)
        except CertificateError as error:
            problem = error
        if _read(files) == contents:
            if problem:
                raise problem
            return contents
    raise CertificateError(f"{_CERT}: {files.cert}: keeps changing; expected a file at rest")


_SUPPORTED_KEYS: Final = (
    bytes.fromhex("06092a864886f70d010101"),  # RSA
    bytes.fromhex("06072a8648ce3d020106082a8648ce3d030107"),  # ECDSA with P-256
    bytes.fromhex("06072a8648ce3d020106052b81040022"),  # P-384
    bytes.fromhex("06072a8648ce3d020106052b81040023"),  # P-521
    bytes.fromhex("06032b6570"),  # Ed25519
)
"""Kinds of public keys that gRPC can serve with, as certificates encode them (RFC 5480, RFC 8410).
With any other it reports only that it cannot listen."""

_PEM_CERTIFICATE: Final = re.compile(rb"BEGIN (?:X509 )?CERTIFICATE-----(.+?)-----END", re.DOTALL)


def _verify(files: Files, contents: _Contents) -> None:
    """Verify the files with OpenSSL, and refuse those that gRPC's BoringSSL does not read.

    gRPC does not report why it refuses a pair, and a rotation it ignores silently.
    """
    cert, _, client_ca = contents
    with _naming(_OPENSSL, os.environ.get(_OPENSSL, "unset"), "ciphers"):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with _naming(_CERT, f"{files.cert} and {files.key}", "PEM, and no password"):
        # Without a password, OpenSSL would ask for it on the terminal.
        context.load_cert_chain(files.cert, files.key, password="")
    with _naming(_CERT, files.cert, "CERTIFICATE with RSA, ECDSA P-256, P-384, P-521 or Ed25519"):
        leaf = _PEM_CERTIFICATE.search(cert)
        if leaf is None or b"BEGIN TRUSTED" in cert:
            raise ValueError("TRUSTED CERTIFICATE")
        if not any(kind in base64.b64decode(leaf[1]) for kind in _SUPPORTED_KEYS):
            raise ValueError("a kind of key that gRPC cannot use")
    if files.client_ca is not None:
        with _naming(_CLIENT_CA, files.client_ca, "certificates in PEM"):
            if b"X509 CRL" in client_ca:
                raise ValueError("revocation lists are not supported")
            context.load_verify_locations(files.client_ca)


@contextmanager
def _naming(variable: str, place: object, expected: str = "a readable file") -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        why = _words(error)
        raise CertificateError(f"{variable}: {place}: {why}; expected {expected}") from None


_WORDS: Final[Mapping[str | None, str]] = {
    None: "cannot be read",
    "EE_KEY_TOO_SMALL": "the key is too small",
    "KEY_VALUES_MISMATCH": "the certificate and the key do not match",
    "NO_CERTIFICATE_OR_CRL_FOUND": "no certificates in it",
}


def _words(error: Exception) -> str:
    """Return why OpenSSL or the system refuses a file."""
    if isinstance(error, ssl.SSLError):
        return _WORDS.get(error.reason) or error.reason.lower().replace("_", " ")
    return getattr(error, "strerror", None) or str(error)

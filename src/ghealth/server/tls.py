"""Certificates: the server's, read again when it changes, and the trusted ones."""

import base64
import logging
import os
import re
import ssl
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import grpc

from ghealth.events import log_event

_log = logging.getLogger(__name__)


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


@dataclass(frozen=True, slots=True)
class _Contents:
    cert: bytes
    key: bytes
    client_ca: bytes | None


class CertificateError(Exception):
    """A file of a server's certificate cannot be used; the message is one line.

    Args:
        variable: The variable that names the file.
        reason: What is wrong with it.
    """

    def __init__(self, variable: str, reason: str) -> None:
        super().__init__(reason)
        self.variable = variable


_Signature = tuple[tuple[int, ...] | None, ...]


def mistakes(files: Files | None) -> list[str]:
    """Return the mistakes in a server's certificate files, one line each.

    Args:
        files: The files; None has no mistakes.
    """
    if files is None:
        return []
    try:
        _read(files)
    except CertificateError as error:
        return [f"{error.variable}: {error}"]
    return []


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
        self._seen = _signature(files)
        self._contents = _read(files)
        self._configuration = _configuration(self._contents)

    def credentials(self) -> grpc.ServerCredentials:
        """Create gRPC's credentials for one port.

        gRPC keeps a port's certificate until the credentials of this port return another one, so
        ports cannot share credentials.
        """
        initial = used = self._current()

        def changed() -> "grpc.ServerCertificateConfiguration | None":
            nonlocal used
            current = self._current()
            if current is used:
                return None
            used = current
            return current

        credentials: grpc.ServerCredentials = grpc.dynamic_ssl_server_credentials(
            initial,
            # None keeps the certificate in use; the type stubs lack it.
            changed,  # type: ignore[arg-type]
            require_client_authentication=self._files.client_ca is not None,
        )
        return credentials

    def _current(self) -> grpc.ServerCertificateConfiguration:
        """Return the certificate to serve with: the last valid one if the files are not valid.

        gRPC's threads call it at each handshake: it must be quick and must not raise.
        """
        with self._lock:
            try:
                self._follow()
            except Exception:
                _log.exception("reading certificates failed", extra={"event": "internal_error"})
            return self._configuration

    def _follow(self) -> None:
        """Read the files if they have changed since they were read, valid or not."""
        signature = _signature(self._files)
        if signature == self._seen:
            return
        self._seen = signature
        try:
            contents = _read(self._files)
        except CertificateError as error:
            log_event(
                _log,
                logging.WARNING,
                "certificate_rejected",
                f"the new certificate cannot be used, the old one stays in use: {error}",
                reason=str(error),
            )
            return
        if contents == self._contents:
            return
        self._contents = contents
        self._configuration = _configuration(contents)
        log_event(_log, logging.INFO, "certificate_replaced", "serving with the new certificate")


def trust_store() -> ssl.SSLContext:
    """Read the certificates of the system, or of `SSL_CERT_FILE` and `SSL_CERT_DIR`."""
    return ssl.create_default_context()


def trust_store_mistakes() -> list[str]:
    """Return why the certificates of the system cannot be read. OpenSSL ignores it silently."""
    paths = ssl.get_default_verify_paths()
    lines = []
    cafile = os.environ.get(paths.openssl_cafile_env)
    capath = os.environ.get(paths.openssl_capath_env)
    if cafile:
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cafile)
        except (OSError, ssl.SSLError) as error:
            # An SSLError is an OSError, too.
            why = "no certificates in it" if isinstance(error, ssl.SSLError) else error.strerror
            lines.append(
                f"{paths.openssl_cafile_env}: {cafile}: {why}; expected a PEM file, since a "
                "target has an https URL"
            )
    if capath and not all(map(os.path.isdir, capath.split(os.pathsep))):
        lines.append(
            f"{paths.openssl_capath_env}: {capath}: not a folder; expected one with certificates, "
            "since a target has an https URL"
        )
    if not (cafile or capath or paths.cafile or paths.capath):
        lines.append(
            f"SSL_CERT_FILE: unset, and the system has no certificates in {paths.openssl_cafile} "
            f"or {paths.openssl_capath}; expected a PEM file, since a target has an https URL"
        )
    return lines


def _signature(files: Files) -> _Signature:
    """Return values that change with the files; Kubernetes replaces a symbolic link above them."""
    return tuple(map(_file_signature, (files.cert, files.key, files.client_ca)))


def _file_signature(path: Path | None) -> tuple[int, ...] | None:
    if path is None:
        return None
    try:
        status = os.stat(path)  # noqa: PTH116 - runs at each handshake
    except OSError:
        return None
    return (status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size)


_CERT: Final = "GHEALTH_TLS_CERT_FILE"
_KEY: Final = "GHEALTH_TLS_KEY_FILE"
_CLIENT_CA: Final = "GHEALTH_TLS_CLIENT_CA_FILE"

_READS: Final = 3

_SUPPORTED_KEYS: Final = (
    bytes.fromhex("06092a864886f70d010101"),  # RSA
    bytes.fromhex("06072a8648ce3d020106082a8648ce3d030107"),  # ECDSA with P-256
    bytes.fromhex("06072a8648ce3d020106052b81040022"),  # P-384
    bytes.fromhex("06072a8648ce3d020106052b81040023"),  # P-521
    bytes.fromhex("06032b6570"),  # Ed25519
)
"""Kinds of public keys that gRPC can serve with, as certificates encode them (RFC 5480, RFC 8410).
With any other it reports only that it cannot listen."""

_PEM_CERTIFICATE: Final = re.compile(
    rb"-----BEGIN [A-Z0-9 ]*CERTIFICATE-----(.+?)-----END", re.DOTALL
)


def _read(files: Files) -> _Contents:
    """Read the files and verify that they match."""
    for _ in range(_READS):
        contents = _contents(files)
        _verify(files, contents)
        # OpenSSL reads the files itself: equal contents before and after are what it verified.
        if _contents(files) == contents:
            return contents
    raise CertificateError(_CERT, "the files keep changing")


def _contents(files: Files) -> _Contents:
    return _Contents(
        _bytes(_CERT, files.cert),
        _bytes(_KEY, files.key),
        None if files.client_ca is None else _bytes(_CLIENT_CA, files.client_ca),
    )


def _bytes(variable: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CertificateError(variable, f"{path}: {error.strerror}") from None


def _verify(files: Files, contents: _Contents) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(files.cert, files.key, password=_no_password)
    except OSError as error:  # of which SSLError is a kind
        fits = getattr(error, "reason", "") != "KEY_VALUES_MISMATCH"
        why = (
            "expected PEM, the key without a password"
            if fits
            else "the certificate and the key do not match"
        )
        raise CertificateError(_CERT, f"{files.cert} and {files.key}: {why}") from None
    leaf = _PEM_CERTIFICATE.search(contents.cert)
    if leaf and not any(key in base64.b64decode(leaf[1]) for key in _SUPPORTED_KEYS):
        raise CertificateError(
            _CERT, f"{files.cert}: expected a key of RSA, ECDSA with P-256, P-384, P-521 or Ed25519"
        )
    if files.client_ca is not None:
        try:
            context.load_verify_locations(files.client_ca)
        except OSError:
            raise CertificateError(
                _CLIENT_CA, f"{files.client_ca}: no certificates in it; expected PEM"
            ) from None


def _no_password() -> str:
    """Return an empty password; OpenSSL would ask on the terminal for one."""
    return ""


def _configuration(contents: _Contents) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration(
        [(contents.key, contents.cert)], root_certificates=contents.client_ca
    )

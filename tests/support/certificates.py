"""Certificates for tests, and the folder in which Kubernetes mounts them."""

import datetime as dt
import itertools
import ssl
from pathlib import Path
from shutil import rmtree

import trustme

CERT, KEY, CLIENT_CA = "tls.crt", "tls.key", "ca.crt"

Pair = dict[str, bytes]
"""A certificate and its key, by file name."""


def pair_of(authority: trustme.CA, *, expired: bool = False) -> Pair:
    """Issue a certificate for this machine, each time a different one.

    Args:
        authority: Signs it.
        expired: Whether it has expired.
    """
    now = dt.datetime.now(dt.UTC)
    issued = authority.issue_cert(
        "localhost",
        "127.0.0.1",
        not_before=now - dt.timedelta(days=2),
        not_after=now + dt.timedelta(days=-1 if expired else 1),
    )
    chain = b"".join(pem.bytes() for pem in issued.cert_chain_pems)
    return {CERT: chain, KEY: issued.private_key_pem.bytes()}


def der_of(pair: Pair) -> bytes:
    """Return a pair's certificate in the form that a handshake's peer has."""
    end = pair[CERT].index(b"-----END CERTIFICATE-----\n") + len("-----END CERTIFICATE-----\n")
    return ssl.PEM_cert_to_DER_cert(pair[CERT][:end].decode())


def client_of(
    authority: trustme.CA,
    pair: Path | None = None,
    *,
    version: ssl.TLSVersion | None = None,
    alpn: bool = True,
) -> ssl.SSLContext:
    """Create a client context that trusts an authority.

    Args:
        authority: The authority.
        pair: A folder with the client's certificate and key.
        version: The only version of TLS that it supports.
        alpn: Whether it asks for HTTP/2 (RFC 9113, section 3.2).
    """
    context = ssl.create_default_context()
    authority.configure_trust(context)
    if pair is not None:
        context.load_cert_chain(pair / CERT, pair / KEY)
    if version is not None:
        context.minimum_version = context.maximum_version = version
    if alpn:
        context.set_alpn_protocols(["h2"])
    return context


class Mounted:
    """A Secret's volume: its files are links into a folder that is replaced as a whole.

    The kubelet writes a new folder, renames a link to it over the old link, and removes the old
    folder (kubernetes/pkg/volume/util/atomic_writer.go).

    Args:
        path: The mount point.
        files: The Secret's data.
    """

    def __init__(self, path: Path, files: dict[str, bytes]) -> None:
        self.path = path
        self._numbers = itertools.count()
        self._current: Path | None = None
        path.mkdir()
        self.swap(files)
        for name in files:
            (path / name).symlink_to(f"..data/{name}")

    def swap(self, files: dict[str, bytes]) -> None:
        """Replace all files at once.

        Args:
            files: The Secret's new data; a file that is missing here is removed.
        """
        folder = self.path / f"..2026_01_01.{next(self._numbers)}"
        folder.mkdir()
        for name, data in files.items():
            (folder / name).write_bytes(data)
        link = self.path / "..data_tmp"
        link.symlink_to(folder.name)
        link.rename(self.path / "..data")
        if self._current is not None:
            rmtree(self._current)
        self._current = folder

import asyncio
import logging
import ssl
import subprocess
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import grpc
import pytest
import trustme

from ghealth.server import tls
from ghealth.server.tls import CertificateError, Files, ServerCertificate, trust_store
from tests.support import certificates, frames, wire
from tests.support.certificates import CERT, CLIENT_CA, KEY, Mounted, Pair, client_of, der_of
from tests.support.running import Running, closed, run

AUTHORITY, OTHER = trustme.CA(), trustme.CA()


def pair_of(*, expired: bool = False) -> Pair:
    """Issue a pair, beside the authority of clients."""
    issued = certificates.pair_of(AUTHORITY, expired=expired)
    return issued | {CLIENT_CA: AUTHORITY.cert_pem.bytes()}


def mistake(files: Files) -> str:
    """Return what is wrong with certificate files."""
    with pytest.raises(CertificateError) as raised:
        ServerCertificate(files)
    return str(raised.value)


@pytest.fixture
def secret(tmp_path: Path) -> Mounted:
    return Mounted(tmp_path / "tls", pair_of())


def files_in(secret: Mounted, *, verifies: bool = False) -> Files:
    folder = secret.path
    return Files(folder / CERT, folder / KEY, folder / CLIENT_CA if verifies else None)


@dataclass
class Port:
    """What gRPC has for a port, and would ask at each handshake."""

    initial: object
    handshake: Callable[[], object]
    require_client_authentication: bool


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch, secret: Mounted, caplog: pytest.LogCaptureFixture) -> Any:
    """A port with the certificate in a Secret, without gRPC."""

    def configure(pairs: object, *, root_certificates: bytes | None) -> tuple[object, object]:
        return pairs, root_certificates

    monkeypatch.setattr(grpc, "dynamic_ssl_server_credentials", Port)
    monkeypatch.setattr(grpc, "ssl_server_certificate_configuration", configure)
    caplog.set_level(logging.INFO, "ghealth.server.tls")
    return ServerCertificate(files_in(secret)).credentials()


def events(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    """Return the events in the log, and their reasons."""
    lines = [vars(record) for record in caplog.records]
    return [(line["event"], line.get("fields", {}).get("reason", "")) for line in lines]


def serves(pair: Pair, client_ca: bytes | None = None) -> object:
    """Return what gRPC then serves."""
    return [(pair[KEY], pair[CERT])], client_ca


@pytest.mark.usefixtures("port")
@pytest.mark.parametrize("verifies", [False, True])
def test_a_new_pair_is_served_on_every_port(
    secret: Mounted, caplog: pytest.LogCaptureFixture, verifies: bool
) -> None:
    """Each port gets the new pair at its next handshake, and there is one line about it."""
    certificate = ServerCertificate(files_in(secret, verifies=verifies))
    ports: list[Any] = [certificate.credentials(), certificate.credentials()]
    assert [port.require_client_authentication for port in ports] == [verifies] * 2
    assert [port.handshake() for port in ports] == [None, None]
    new = pair_of() | {CLIENT_CA: OTHER.cert_pem.bytes()}
    secret.swap(new)
    expected = serves(new, new[CLIENT_CA] if verifies else None)
    assert [port.handshake() for port in ports * 2] == [expected, expected, None, None]
    assert events(caplog) == [("certificate_replaced", "")]
    third: Any = certificate.credentials()
    assert third.initial == expected


def openssl(arguments: str, data: bytes = b"") -> bytes:
    command = ["openssl", *arguments.split()]
    return subprocess.run(command, input=data, check=True, capture_output=True).stdout


def trusted(cert: bytes) -> bytes:
    """Return a certificate in OpenSSL's own format, which gRPC reads of authorities only."""
    return openssl("x509 -trustout -addtrust serverAuth", cert)


NEW = pair_of()
BAD_BLOCK = b"-----BEGIN CERTIFICATE-----\n!!!!\n-----END CERTIFICATE-----\n"
PEM = "PEM, and no password"
ONE = "GHEALTH_TLS_CERT_FILE: {0}/tls.crt: "
BOTH = "GHEALTH_TLS_CERT_FILE: {0}/tls.crt and {0}/tls.key: "
KINDS = "CERTIFICATE with RSA, ECDSA P-256, P-384, P-521 or Ed25519"
MISSING = "No such file or directory; expected a readable file"
MISMATCH = "the certificate and the key do not match; expected " + PEM


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (NEW | {KEY: pair_of()[KEY]}, BOTH + MISMATCH),
        (NEW | {CERT: b"?"}, BOTH + "cannot be read; expected " + PEM),
        (NEW | {CERT: NEW[CERT] + BAD_BLOCK}, BOTH + "bad base64 decode; expected " + PEM),
        (NEW | {CERT: trusted(NEW[CERT])}, ONE + "TRUSTED CERTIFICATE; expected " + KINDS),
        ({CERT: NEW[CERT]}, "GHEALTH_TLS_KEY_FILE: {0}/tls.key: " + MISSING),
        ({KEY: NEW[KEY]}, ONE + MISSING),
    ],
    ids=["of two pairs", "not PEM", "one bad block", "trusted", "no key", "no certificate"],
)
def test_a_broken_new_pair_is_not_served(
    secret: Mounted, port: Port, caplog: pytest.LogCaptureFixture, broken: Pair, reason: str
) -> None:
    """The old one stays, with one line however many handshakes there are, until it is fixed.

    At the start the same pair is a mistake that names the file.
    """
    reason = reason.format(secret.path)
    secret.swap(broken)
    assert [port.handshake() for _ in range(5)] == [None] * 5
    assert events(caplog) == [("certificate_rejected", reason)]
    assert caplog.records[0].levelno == logging.WARNING
    assert mistake(files_in(secret)) == reason
    secret.swap(NEW)
    assert [port.handshake(), port.handshake()] == [serves(NEW), None]
    assert events(caplog)[1:] == [("certificate_replaced", "")]


CRL = b"-----BEGIN X509 CRL-----\n-----END X509 CRL-----\n"


@pytest.mark.parametrize(
    ("client_ca", "why"),
    [
        (b"?", "no certificates in it"),
        (NEW[CLIENT_CA] + BAD_BLOCK, "cannot be read"),
        (NEW[CLIENT_CA] + CRL, "revocation lists are not supported"),
    ],
)
def test_client_authorities_that_cannot_be_used_are_a_mistake(
    secret: Mounted, client_ca: bytes, why: str
) -> None:
    """Revocation lists, and all that follows a broken block, would be ignored by gRPC."""
    secret.swap(NEW | {CLIENT_CA: client_ca})
    files = files_in(secret, verifies=True)
    expected = f"{files.client_ca}: {why}; expected certificates in PEM"
    assert mistake(files) == f"GHEALTH_TLS_CLIENT_CA_FILE: {expected}"


def test_a_handshake_verifies_only_a_new_pair(
    secret: Mounted, port: Port, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trap 23: a pair in use is compared only. One that could not be verified is tried again.

    With no free descriptor, for example, a valid pair cannot be read.
    """
    none_left = CertificateError("GHEALTH_TLS_CERT_FILE: Too many open files")
    monkeypatch.setattr(tls, "_verify", Mock(side_effect=[none_left, none_left, None]))
    assert port.handshake() is None
    secret.swap(NEW)
    found = [port.handshake() for _ in range(5)]
    assert found == [None, None, serves(NEW), None, None]


@pytest.mark.parametrize(
    ("times", "event"),
    [
        (1, ("certificate_replaced", "")),
        (9, ("certificate_rejected", ONE + "keeps changing; expected a file at rest")),
    ],
)
def test_files_that_change_while_they_are_verified_are_read_again(
    secret: Mounted,
    port: Port,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    times: int,
    event: tuple[str, str],
) -> None:
    """OpenSSL reads the files itself, so half of a pair that is gone could be served."""
    verify, pairs = tls._verify, [NEW, *(pair_of() for _ in range(times - 1))]

    def replaced(*arguments: Any) -> None:
        if pairs:
            secret.swap(pairs.pop())
        verify(*arguments)

    monkeypatch.setattr(tls, "_verify", replaced)
    secret.swap(pair_of())
    assert port.handshake() == (None if pairs else serves(NEW))
    assert events(caplog) == [(event[0], event[1].format(secret.path))]


EC = "-nodes -newkey ec -pkeyopt ec_paramgen_curve:"
UNUSABLE = f"a kind of key that gRPC cannot use; expected {KINDS}"


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ("-nodes -newkey rsa:2048", None),
        (EC + "P-256", None),
        (EC + "P-384", None),
        (EC + "P-521", None),
        ("-nodes -newkey ed25519", None),
        ("-nodes -newkey ed448", UNUSABLE),
        ("-nodes -newkey rsa-pss -pkeyopt rsa_keygen_bits:2048", UNUSABLE),
        (EC + "secp224r1", UNUSABLE),
        ("-nodes -newkey rsa:1024", "the key is too small; expected " + PEM),
        ("-newkey rsa:2048 -passout pass:x", "cannot be read; expected " + PEM),
    ],
)
async def test_a_key_that_cannot_be_used_is_a_mistake(
    tmp_path: Path, options: str, why: str | None
) -> None:
    """A key is accepted only if gRPC can listen with it; otherwise the cause is named."""
    files = Files(tmp_path / "c.pem", tmp_path / "k.pem", None)
    openssl(f"req -x509 -subj /CN=localhost -keyout {files.key} -out {files.cert} {options}")
    if why:
        assert mistake(files).endswith(f": {why}")
    else:
        async with run(tls_listen="127.0.0.1:0", tls_cert_file=files.cert, tls_key_file=files.key):
            pass


# ---- on the wire ---------------------------------------------------------------------------------

LIVENESS = wire.framed(b"\x0a\x08liveness")
CLIENT = client_of(AUTHORITY)


def serving(
    secret: Mounted, *, verifies: bool = False, **values: Any
) -> AbstractAsyncContextManager[Running]:
    """Serve with the certificate in a Secret."""
    files = asdict(files_in(secret, verifies=verifies))
    paths = {f"tls_{name}_file": path for name, path in files.items()}
    return run(**{"tls_listen": "127.0.0.1:0"} | paths | values)


async def shown(port: int, client: ssl.SSLContext = CLIENT) -> bytes:
    """Check, and return the server's certificate."""
    reply = await wire.call(port, LIVENESS, tls=client)
    assert (reply.code, reply.data) == (0, b"\0\0\0\0\2\x08\1")
    return reply.certificate


async def refused(port: int, client: ssl.SSLContext | None) -> None:
    """Assert that a call is not answered; with TLS 1.3 the refusal comes after the handshake."""
    with pytest.raises((ssl.SSLError, OSError, AssertionError)):
        await wire.call(port, LIVENESS, tls=client)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_it_serves_beside_plaintext(secret: Mounted, version: ssl.TLSVersion) -> None:
    """TLS 1.2 and 1.3 are answered like plaintext, and neither port answers the other's clients."""
    secret.swap(NEW)
    client = client_of(AUTHORITY, version=version)
    async with serving(secret) as running:
        (plain,), (secure,) = running.ports.listen, running.ports.tls_listen
        assert (await wire.call(plain, LIVENESS)).code == 0
        assert await shown(secure, client) == der_of(NEW)
        await refused(plain, client)
        await refused(secure, None)


async def test_a_silent_connection_is_closed(secret: Mounted) -> None:
    """Trap 12: within 20 s, not after gRPC's 60 s to 120 s, also one without acknowledgement."""
    async with serving(secret) as running, asyncio.timeout(20):
        (plain,), (secure,) = running.ports.listen, running.ports.tls_listen
        silent = closed(plain, b""), closed(plain, frames.hello()), closed(secure, b"")
        await asyncio.gather(*silent)


@pytest.mark.parametrize("file", [CERT, KEY, CLIENT_CA])
async def test_a_byte_order_mark_is_ignored(tmp_path: Path, secret: Mounted, file: str) -> None:
    """Trap 29: gRPC does not read a file that begins with one, so it gets the file without."""
    client = client_of(AUTHORITY, Mounted(tmp_path / "client", NEW).path)
    first, second = pair_of(), pair_of()
    secret.swap(first | {file: b"\xef\xbb\xbf" + first[file]})
    async with serving(secret, verifies=True) as running:
        assert await shown(running.ports.tls_listen[0], client) == der_of(first)
        secret.swap(second | {file: b"\xef\xbb\xbf" + second[file]})
        assert await shown(running.ports.tls_listen[0], client) == der_of(second)


async def test_a_bug_in_reading_ends_no_handshake(
    secret: Mounted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trap 23: gRPC logs an exception of the callback, and serves with the old certificate."""
    async with serving(secret) as running:
        monkeypatch.setattr(tls, "_read", None)
        assert await shown(running.ports.tls_listen[0])


async def test_a_rotation_reaches_every_port(secret: Mounted) -> None:
    """A new pair is served at the next handshake, on each of several ports, without a restart.

    With LISTEN=off they are all that there is.
    """
    async with serving(secret, listen="off", tls_listen="127.0.0.1:0,localhost:0") as running:
        assert running.ports.listen == ()
        for new in (pair_of(), NEW):
            secret.swap(new)
            assert [await shown(port) for port in running.ports.tls_listen] == [der_of(new)] * 2
        secret.swap({CERT: NEW[CERT]})
        assert [await shown(port) for port in running.ports.tls_listen] == [der_of(NEW)] * 2


async def test_client_certificates(tmp_path: Path, secret: Mounted) -> None:
    """With TLS_CLIENT_CA_FILE only certificates of its authorities are answered, expired ones not.

    The authorities follow their file as the pair does; they may be in OpenSSL's own format.
    """
    pairs = {"good": NEW, "foreign": certificates.pair_of(OTHER), "expired": pair_of(expired=True)}
    client = {
        name: client_of(AUTHORITY, Mounted(tmp_path / name, pair).path)
        for name, pair in pairs.items()
    }
    async with serving(secret, verifies=True) as running:
        (port,) = running.ports.tls_listen
        assert await shown(port, client["good"])
        for other in (CLIENT, client["foreign"], client["expired"]):
            await refused(port, other)
        secret.swap(pair_of() | {CLIENT_CA: trusted(OTHER.cert_pem.bytes())})
        assert await shown(port, client["foreign"])
        await refused(port, client["good"])
        assert (await wire.call(running.ports.listen[0], LIVENESS)).code == 0


async def test_an_expired_certificate_is_served(secret: Mounted) -> None:
    """An ALB does not verify it, and a pod that ended over it would be worse: clients decide."""
    expired = pair_of(expired=True)
    secret.swap(expired)
    careless = client_of(AUTHORITY)
    careless.check_hostname, careless.verify_mode = False, ssl.CERT_NONE
    async with serving(secret) as running:
        (port,) = running.ports.tls_listen
        with pytest.raises(ssl.SSLCertVerificationError, match="expired"):
            await shown(port)
        assert await shown(port, careless) == der_of(expired)


# ---- what ghealth trusts ------------------------------------------------------------------------


NEEDED = "since a target has an https URL"


@pytest.fixture
def paths(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The certificates of the system, which has none."""
    for name in ("SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.delenv(name, raising=False)
    none = {"cafile": None, "capath": None, "openssl_cafile": "/a", "openssl_capath": "/b"}
    found = SimpleNamespace(**none)
    monkeypatch.setattr(ssl, "get_default_verify_paths", lambda: found)
    return found


def test_a_trust_store_that_can_be_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, paths: SimpleNamespace
) -> None:
    """It is the system's, or what the variables name."""
    file = tmp_path / "ca.pem"
    AUTHORITY.cert_pem.write_to_path(file)
    paths.cafile = str(file)
    trust_store()
    paths.cafile = None
    monkeypatch.setenv("SSL_CERT_DIR", f"{tmp_path}:{tmp_path}")
    trust_store()
    monkeypatch.setenv("SSL_CERT_FILE", str(file))
    assert ssl.PEM_cert_to_DER_cert(file.read_text()) in trust_store().get_ca_certs(True)


FILE = "; expected a PEM file, " + NEEDED


@pytest.mark.usefixtures("paths")
@pytest.mark.parametrize(
    ("variable", "value", "mistake"),
    [
        ("SSL_CERT_FILE", "", "unset, and no certificates in /a or /b" + FILE),
        ("SSL_CERT_FILE", "/gone", "/gone: No such file or directory" + FILE),
        ("SSL_CERT_FILE", "/dev/null", "/dev/null: no certificates in it" + FILE),
        ("SSL_CERT_DIR", "/etc:/gone", "/etc:/gone: not a folder; expected folders, " + NEEDED),
    ],
)
def test_a_trust_store_that_cannot_be_read_is_a_mistake(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, mistake: str
) -> None:
    """OpenSSL ignores it silently, and every https probe would fail."""
    monkeypatch.setenv(variable, value)
    with pytest.raises(CertificateError) as raised:
        trust_store()
    assert str(raised.value) == f"{variable}: {mistake}"


def test_openssl_without_ciphers_is_a_mistake(
    monkeypatch: pytest.MonkeyPatch, secret: Mounted
) -> None:
    """A FIPS configuration without its provider is named in one line."""
    error = ssl.SSLError(161, "library has no ciphers")
    error.reason = "LIBRARY_HAS_NO_CIPHERS"
    monkeypatch.setenv("OPENSSL_CONF", "/x.cnf")
    for name in ("create_default_context", "SSLContext"):
        monkeypatch.setattr(ssl, name, Mock(side_effect=error))
    expected = "OPENSSL_CONF: /x.cnf: library has no ciphers; expected ciphers"
    with pytest.raises(CertificateError) as raised:
        trust_store()
    assert str(raised.value) == f"{expected}, {NEEDED}"
    assert mistake(files_in(secret)) == expected


def test_the_trust_store_is_as_strict_on_every_python(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trap 35: Python 3.13 would refuse certificates that Go and older Pythons accept."""
    strict = ssl.create_default_context()
    strict.verify_flags |= ssl.VERIFY_X509_STRICT
    monkeypatch.setattr(ssl, "create_default_context", lambda: strict)
    assert not trust_store().verify_flags & ssl.VERIFY_X509_STRICT

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
CLIENT = client_of(AUTHORITY)
LIVENESS = wire.framed(b"\x0a\x08liveness")


def pair_of(*, expired: bool = False) -> Pair:
    """Issue a pair, beside the authority of clients."""
    issued = certificates.pair_of(AUTHORITY, expired=expired)
    return issued | {CLIENT_CA: AUTHORITY.cert_pem.bytes()}


@pytest.fixture
def secret(tmp_path: Path) -> Mounted:
    return Mounted(tmp_path / "tls", pair_of())


def files_in(secret: Mounted, *, verifies: bool = False) -> Files:
    folder = secret.path
    return Files(folder / CERT, folder / KEY, folder / CLIENT_CA if verifies else None)


def mistake(read: Callable[..., object], *files: Files) -> str:
    """Return why certificates cannot be read."""
    with pytest.raises(CertificateError) as raised:
        read(*files)
    return str(raised.value)


def serving(
    files: Files, listen: str = "off", tls_listen: str = "127.0.0.1:0"
) -> AbstractAsyncContextManager[Running]:
    """Serve with a certificate."""
    paths = {f"tls_{name}_file": path for name, path in asdict(files).items()}
    return run(probes=None, listen=listen, tls_listen=tls_listen, **paths)


async def shown(port: int, client: ssl.SSLContext = CLIENT) -> bytes:
    """Check, and return the server's certificate."""
    reply = await wire.call(port, LIVENESS, tls=client)
    assert (reply.code, reply.data) == (0, b"\0\0\0\0\2\x08\1")
    return reply.certificate


async def refused(port: int, client: ssl.SSLContext | None) -> None:
    """Assert that a call is not answered; with TLS 1.3 the refusal comes after the handshake."""
    with pytest.raises((ssl.SSLError, OSError, AssertionError)):
        await wire.call(port, LIVENESS, tls=client)


@dataclass
class Port:
    """What gRPC has for a port, and would ask at each handshake."""

    initial: object
    handshake: Callable[[], object]
    require_client_authentication: bool


Events = Callable[[], list[tuple[str, int, str]]]


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Events:
    """Return the events of changed certificates, their levels and their reasons; without gRPC."""

    def configure(pairs: object, *, root_certificates: bytes | None) -> tuple[object, object]:
        return pairs, root_certificates

    monkeypatch.setattr(grpc, "dynamic_ssl_server_credentials", Port)
    monkeypatch.setattr(grpc, "ssl_server_certificate_configuration", configure)
    caplog.set_level(logging.INFO)

    def events() -> list[tuple[str, int, str]]:
        found = map(vars, caplog.records)
        return [(one["event"], one["levelno"], str(one["fields"])) for one in found]

    return events


@pytest.fixture
def port(secret: Mounted, events: Events) -> Any:  # noqa: ARG001 - without gRPC
    """A port with the certificate in a Secret."""
    return ServerCertificate(files_in(secret, verifies=True)).credentials()


def serves(pair: Pair, client_ca: bytes | None = None) -> object:
    """Return what gRPC then serves."""
    return [(pair[KEY], pair[CERT])], client_ca


def openssl(arguments: str, data: bytes = b"") -> bytes:
    command = ["openssl", *arguments.split()]
    return subprocess.run(command, input=data, check=True, capture_output=True).stdout


def trusted(cert: bytes) -> bytes:
    """Return a certificate in OpenSSL's own format, which gRPC reads of authorities only."""
    return openssl("x509 -trustout -addtrust serverAuth", cert)


# The server's certificate.


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_it_serves_beside_plaintext(secret: Mounted, version: ssl.TLSVersion) -> None:
    """TLS 1.2 and 1.3 are answered like plaintext, and neither port answers the other's clients."""
    client = client_of(AUTHORITY, version=version)
    async with serving(files_in(secret), listen="127.0.0.1:0") as running:
        (plain,), (secure,) = running.ports.listen, running.ports.tls_listen
        assert (await wire.call(plain, LIVENESS)).code == 0
        assert await shown(secure, client)
        await refused(plain, client)
        await refused(secure, None)


async def test_a_silent_connection_is_closed(secret: Mounted) -> None:
    """Trap 12: within 20 s, not after gRPC's 60 s to 120 s, also one without acknowledgement."""
    async with serving(files_in(secret), listen="127.0.0.1:0") as running, asyncio.timeout(20):
        (plain,), (secure,) = running.ports.listen, running.ports.tls_listen
        silent = closed(plain, b""), closed(plain, frames.hello()), closed(secure, b"")
        await asyncio.gather(*silent)


REPLACED = ("certificate_replaced", logging.INFO, "{}")


def rejected(reason: str) -> tuple[str, int, str]:
    return "certificate_rejected", logging.WARNING, str({"reason": reason})


@pytest.mark.parametrize("verifies", [False, True])
def test_a_new_pair_is_served_on_every_port(
    secret: Mounted, events: Events, verifies: bool
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
    assert events() == [REPLACED]


NEW = pair_of()
CRL = b"-----BEGIN X509 CRL-----\n-----END X509 CRL-----\n"
BAD_BLOCK = b"-----BEGIN CERTIFICATE-----\n!!!!\n-----END CERTIFICATE-----\n"
PEM = "PEM, and no password"
ONE = "GHEALTH_TLS_CERT_FILE: {0}/tls.crt: "
CAS = "GHEALTH_TLS_CLIENT_CA_FILE: {0}/ca.crt: "
PEMS = "; expected certificates in PEM"
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
        (NEW | {CLIENT_CA: b"?"}, CAS + "no certificates in it" + PEMS),
        # It, and all that follows it, would be ignored by gRPC.
        (NEW | {CLIENT_CA: NEW[CLIENT_CA] + BAD_BLOCK}, CAS + "cannot be read" + PEMS),
        (
            NEW | {CLIENT_CA: NEW[CLIENT_CA] + CRL},
            CAS + "revocation lists are not supported" + PEMS,
        ),
    ],
)
def test_a_broken_new_pair_is_not_served(
    secret: Mounted, port: Port, events: Events, broken: Pair, reason: str
) -> None:
    """The old one stays, with one line however many handshakes there are, until it is fixed.

    At the start the same pair is a mistake that names the file.
    """
    reason = reason.format(secret.path)
    secret.swap(broken)
    assert [port.handshake() for _ in range(5)] == [None] * 5
    assert mistake(ServerCertificate, files_in(secret, verifies=True)) == reason
    secret.swap(NEW)
    assert [port.handshake(), port.handshake()] == [serves(NEW, NEW[CLIENT_CA]), None]
    assert events() == [rejected(reason), REPLACED]


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
    assert found == [None, None, serves(NEW, NEW[CLIENT_CA]), None, None]


@pytest.mark.parametrize("times", [1, 9])
def test_files_that_change_while_they_are_verified_are_read_again(
    secret: Mounted, port: Port, monkeypatch: pytest.MonkeyPatch, events: Events, times: int
) -> None:
    """OpenSSL reads the files itself, so half of a pair that is gone could be served."""
    verify, pairs = tls._verify, [NEW, *(pair_of() for _ in range(times - 1))]

    def replaced(*arguments: Any) -> None:
        if pairs:
            secret.swap(pairs.pop())
        verify(*arguments)

    monkeypatch.setattr(tls, "_verify", replaced)
    secret.swap(pair_of())
    assert port.handshake() == (serves(NEW, NEW[CLIENT_CA]) if times == 1 else None)
    why = ONE.format(secret.path) + "keeps changing; expected a file at rest"
    assert events() == [REPLACED if times == 1 else rejected(why)]


async def test_a_rotation_reaches_every_port(secret: Mounted) -> None:
    """A new pair is served at the next handshake, on each of several ports, without a restart.

    With LISTEN=off they are all that there is.
    """
    async with serving(files_in(secret), tls_listen="127.0.0.1:0,localhost:0") as running:
        assert running.ports.listen == ()
        for new in (pair_of(), NEW):
            secret.swap(new)
            assert [await shown(port) for port in running.ports.tls_listen] == [der_of(new)] * 2


@pytest.mark.parametrize("file", [CERT, KEY, CLIENT_CA])
async def test_a_byte_order_mark_is_ignored(tmp_path: Path, secret: Mounted, file: str) -> None:
    """Trap 29: gRPC does not read a file that begins with one, so it gets the file without."""
    client = client_of(AUTHORITY, Mounted(tmp_path / "client", NEW).path)
    first, second = pair_of(), pair_of()
    secret.swap(first | {file: b"\xef\xbb\xbf" + first[file]})
    async with serving(files_in(secret, verifies=True)) as running:
        assert await shown(running.port, client) == der_of(first)
        secret.swap(second | {file: b"\xef\xbb\xbf" + second[file]})
        assert await shown(running.port, client) == der_of(second)


async def test_a_bug_in_reading_ends_no_handshake(
    secret: Mounted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trap 23: gRPC logs an exception of the callback, and serves with the old certificate."""
    async with serving(files_in(secret)) as running:
        monkeypatch.setattr(tls, "_read", None)
        assert await shown(running.port)


EC = "-nodes -newkey ec -pkeyopt ec_paramgen_curve:"
UNUSABLE = f"a kind of key that gRPC cannot use; expected {KINDS}"


@pytest.mark.parametrize(
    ("options", "why"),
    [
        *((EC + curve, None) for curve in ("P-256", "P-384", "P-521")),
        ("-nodes -newkey rsa:2048", None),
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
        assert mistake(ServerCertificate, files).endswith(f": {why}")
    else:
        async with serving(files):
            pass


async def test_client_certificates(tmp_path: Path, secret: Mounted) -> None:
    """With TLS_CLIENT_CA_FILE only certificates of its authorities are answered, expired ones not.

    The authorities follow their file as the pair does; they may be in OpenSSL's own format.
    """
    pairs = (NEW, certificates.pair_of(OTHER), pair_of(expired=True))
    good, foreign, expired = (
        client_of(AUTHORITY, Mounted(tmp_path / str(number), pair).path)
        for number, pair in enumerate(pairs)
    )
    async with serving(files_in(secret, verifies=True)) as running:
        assert await shown(running.port, good)
        for other in (CLIENT, foreign, expired):
            await refused(running.port, other)
        secret.swap(pair_of() | {CLIENT_CA: trusted(OTHER.cert_pem.bytes())})
        assert await shown(running.port, foreign)
        await refused(running.port, good)


async def test_an_expired_certificate_is_served(secret: Mounted) -> None:
    """An ALB does not verify it, and a pod that ended over it would be worse: clients decide."""
    expired = pair_of(expired=True)
    secret.swap(expired)
    careless = client_of(AUTHORITY)
    careless.check_hostname, careless.verify_mode = False, ssl.CERT_NONE
    async with serving(files_in(secret)) as running:
        with pytest.raises(ssl.SSLCertVerificationError, match="expired"):
            await shown(running.port)
        assert await shown(running.port, careless) == der_of(expired)


# What ghealth trusts.

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
    ("variable", "value", "why"),
    [
        ("SSL_CERT_FILE", "", "unset, and no certificates in /a or /b" + FILE),
        ("SSL_CERT_FILE", "/gone", "/gone: No such file or directory" + FILE),
        ("SSL_CERT_FILE", "/dev/null", "/dev/null: no certificates in it" + FILE),
        ("SSL_CERT_DIR", "/etc:/gone", "/etc:/gone: not a folder; expected folders, " + NEEDED),
    ],
)
def test_a_trust_store_that_cannot_be_read_is_a_mistake(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, why: str
) -> None:
    """OpenSSL ignores it silently, and every https probe would fail."""
    monkeypatch.setenv(variable, value)
    assert mistake(trust_store) == f"{variable}: {why}"


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
    assert mistake(ServerCertificate, files_in(secret)) == expected
    assert mistake(trust_store) == f"{expected}, {NEEDED}"


def test_the_trust_store_is_as_strict_on_every_python(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trap 35: Python 3.13 would refuse certificates that Go and older Pythons accept."""
    strict = ssl.create_default_context()
    strict.verify_flags |= ssl.VERIFY_X509_STRICT
    monkeypatch.setattr(ssl, "create_default_context", lambda: strict)
    assert not trust_store().verify_flags & ssl.VERIFY_X509_STRICT

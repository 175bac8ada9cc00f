import asyncio
import logging
import ssl
import subprocess
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme

from ghealth.server import tls
from ghealth.server.serve import Ports, serve
from ghealth.server.tls import CertificateError, Files, ServerCertificate, trust_store
from ghealth.settings import Settings
from tests.support import wire
from tests.support.certificates import (
    CERT,
    CLIENT_CA,
    KEY,
    Mounted,
    Pair,
    client_of,
    der_of,
    pair_of,
)

LIVENESS = wire.framed(b"\x0a\x08liveness")

AUTHORITY = trustme.CA()
OTHER = trustme.CA()


def mistakes(files: Files) -> list[str]:
    """Return the mistake in certificate files, if there is one."""
    try:
        ServerCertificate(files)
    except CertificateError as error:
        return [str(error)]
    return []


@pytest.fixture
def secret(tmp_path: Path) -> Mounted:
    ca = {CLIENT_CA: AUTHORITY.cert_pem.bytes()}
    return Mounted(tmp_path / "tls", pair_of(AUTHORITY) | ca)


def files_in(secret: Mounted, *, verifies: bool = False) -> Files:
    folder = secret.path
    return Files(folder / CERT, folder / KEY, folder / CLIENT_CA if verifies else None)


Fetch = Callable[[], Any]


class Fetches:
    """What gRPC would ask at each handshake, a callback for each port."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ports: list[Fetch] = []
        self.initial: list[object] = []
        self.requires: list[bool] = []
        monkeypatch.setattr(grpc, "dynamic_ssl_server_credentials", self._make)
        monkeypatch.setattr(grpc, "ssl_server_certificate_configuration", self._configure)

    def _make(
        self, initial: object, fetch: Fetch, *, require_client_authentication: bool
    ) -> object:
        self.initial.append(initial)
        self.ports.append(fetch)
        self.requires.append(require_client_authentication)
        return object()

    def _configure(
        self, pairs: list[tuple[bytes, bytes]], *, root_certificates: bytes | None
    ) -> tuple[Pair, bytes | None]:
        ((key, cert),) = pairs
        return {CERT: cert, KEY: key}, root_certificates


@pytest.fixture
def fetches(monkeypatch: pytest.MonkeyPatch) -> Fetches:
    return Fetches(monkeypatch)


def events(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    return [
        (vars(record)["event"], vars(record).get("fields", {}).get("reason", ""))
        for record in caplog.records
        if record.name == "ghealth.server.tls"
    ]


@pytest.mark.parametrize("verifies", [False, True])
def test_a_new_pair_is_served_on_every_port(
    secret: Mounted, fetches: Fetches, caplog: pytest.LogCaptureFixture, verifies: bool
) -> None:
    """Each port gets the new pair at its next handshake, and there is one line about it."""
    caplog.set_level(logging.INFO)
    certificate = ServerCertificate(files_in(secret, verifies=verifies))
    for _ in range(2):
        certificate.credentials()
    assert fetches.requires == [verifies] * 2
    assert [fetch() for fetch in fetches.ports] == [None, None]
    new = pair_of(AUTHORITY)
    ca = OTHER.cert_pem.bytes()
    secret.swap(new | {CLIENT_CA: ca})
    expected = (new, ca if verifies else None)
    assert [fetch() for fetch in fetches.ports * 2] == [expected, expected, None, None]
    assert events(caplog) == [("certificate_replaced", "")]
    certificate.credentials()
    assert fetches.initial[2] == expected


BOM = b"\xef\xbb\xbf"
BAD_BLOCK = b"-----BEGIN CERTIFICATE-----\n!!!!\n-----END CERTIFICATE-----\n"
OTHER_KEY = pair_of(AUTHORITY)[KEY]
PEM = "PEM, and no password"
BOTH = "GHEALTH_TLS_CERT_FILE: {0}/tls.crt and {0}/tls.key: "
KINDS = "CERTIFICATE with RSA, ECDSA P-256, P-384, P-521 or Ed25519"

Change = Callable[[Pair], Pair]

BROKEN: dict[str, tuple[Change, str]] = {
    "of two pairs": (
        lambda pair: pair | {KEY: OTHER_KEY},
        BOTH + "the certificate and the key do not match; expected " + PEM,
    ),
    "not PEM": (
        lambda pair: pair | {CERT: b"?"},
        BOTH + "cannot be read; expected " + PEM,
    ),
    "one bad block": (
        lambda pair: pair | {CERT: pair[CERT] + BAD_BLOCK},
        BOTH + "bad base64 decode; expected " + PEM,
    ),
    "trusted": (
        lambda pair: pair | {CERT: trusted(pair[CERT])},
        "GHEALTH_TLS_CERT_FILE: {0}/tls.crt: TRUSTED CERTIFICATE; expected " + KINDS,
    ),
    "without a key": (
        lambda pair: {CERT: pair[CERT]},
        "GHEALTH_TLS_KEY_FILE: {0}/tls.key: No such file or directory; expected a readable file",
    ),
    "without a certificate": (
        lambda pair: {KEY: pair[KEY]},
        "GHEALTH_TLS_CERT_FILE: {0}/tls.crt: No such file or directory; expected a readable file",
    ),
}


def trusted(cert: bytes) -> bytes:
    """Return a certificate in OpenSSL's own format, which gRPC reads of authorities only."""
    command = ["openssl", "x509", "-trustout", "-addtrust", "serverAuth"]
    return subprocess.run(command, input=cert, check=True, capture_output=True).stdout


@pytest.mark.parametrize("broken", BROKEN)
def test_a_broken_new_pair_is_not_served(
    secret: Mounted, fetches: Fetches, caplog: pytest.LogCaptureFixture, broken: str
) -> None:
    """The old one stays, with one line however many handshakes there are, until it is fixed.

    At the start the same pair is a mistake that names the file.
    """
    caplog.set_level(logging.INFO)
    files = files_in(secret)
    ServerCertificate(files).credentials()
    (fetch,) = fetches.ports
    new = pair_of(AUTHORITY)
    change, reason = BROKEN[broken]
    reason = reason.format(secret.path)
    secret.swap(change(new))
    assert [fetch() for _ in range(5)] == [None] * 5
    assert events(caplog) == [("certificate_rejected", reason)]
    assert caplog.records[0].levelno == logging.WARNING
    assert mistakes(files) == [reason]
    secret.swap(new)
    assert [fetch() for _ in range(2)] == [(new, None), None]
    assert events(caplog) == [("certificate_rejected", reason), ("certificate_replaced", "")]


@pytest.mark.parametrize(
    ("client_ca", "why"),
    [
        (b"?", "no certificates in it"),
        (AUTHORITY.cert_pem.bytes() + BAD_BLOCK, "cannot be read"),
        (
            AUTHORITY.cert_pem.bytes() + b"-----BEGIN X509 CRL-----\n-----END X509 CRL-----\n",
            "revocation lists are not supported",
        ),
    ],
)
def test_client_authorities_that_cannot_be_used_are_a_mistake(
    secret: Mounted, client_ca: bytes, why: str
) -> None:
    """Revocation lists, and all that follows a broken block, would be ignored by gRPC."""
    files = files_in(secret, verifies=True)
    assert mistakes(files) == []
    secret.swap(pair_of(AUTHORITY) | {CLIENT_CA: client_ca})
    (line,) = mistakes(files)
    assert line == (
        f"GHEALTH_TLS_CLIENT_CA_FILE: {files.client_ca}: {why}; expected certificates in PEM"
    )


def test_the_same_files_written_again_are_no_news(
    secret: Mounted, fetches: Fetches, caplog: pytest.LogCaptureFixture
) -> None:
    """A swap that changes no byte is not a new certificate, and has no line."""
    caplog.set_level(logging.INFO)
    ServerCertificate(files_in(secret)).credentials()
    secret.swap({CERT: (secret.path / CERT).read_bytes(), KEY: (secret.path / KEY).read_bytes()})
    assert fetches.ports[0]() is None
    assert events(caplog) == []


def test_a_handshake_verifies_only_a_new_pair(
    secret: Mounted, fetches: Fetches, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trap 23: a pair in use is compared only. One that could not be verified is tried again.

    With no free descriptor, for example, a valid pair cannot be read.
    """
    verify, fails = tls._verify, [True, True, False]

    def failing(files: Files, contents: Any) -> None:
        if fails.pop(0):
            raise CertificateError("GHEALTH_TLS_CERT_FILE: Too many open files")
        verify(files, contents)

    ServerCertificate(files_in(secret)).credentials()
    monkeypatch.setattr(tls, "_verify", failing)
    (fetch,) = fetches.ports
    assert fetch() is None
    new = pair_of(AUTHORITY)
    secret.swap(new)
    assert [fetch() for _ in range(5)] == [None, None, (new, None), None, None]


@pytest.mark.parametrize("times", [1, 9])
def test_files_that_change_while_they_are_verified_are_read_again(
    secret: Mounted,
    fetches: Fetches,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    times: int,
) -> None:
    """OpenSSL reads the files itself, so half of a pair that is gone could be served."""
    caplog.set_level(logging.INFO)
    verify, pairs = tls._verify, [pair_of(AUTHORITY) for _ in range(times)]
    last = pairs[0]

    def replaced(files: Files, contents: Any) -> None:
        if pairs:
            secret.swap(pairs.pop())
        verify(files, contents)

    ServerCertificate(files_in(secret)).credentials()
    (fetch,) = fetches.ports
    monkeypatch.setattr(tls, "_verify", replaced)
    secret.swap(pair_of(AUTHORITY))
    if times == 1:
        assert fetch() == (last, None)
        assert events(caplog) == [("certificate_replaced", "")]
        return
    assert fetch() is None
    ((event, reason),) = events(caplog)
    assert event == "certificate_rejected"
    assert reason.endswith(": keeps changing; expected a file at rest")


def openssl_pair(folder: Path, *options: str) -> Files:
    """Make a self-signed pair with a key of a kind that trustme does not make."""
    files = Files(folder / "c.pem", folder / "k.pem", None)
    out = ["-keyout", str(files.key), "-out", str(files.cert)]
    command = ["openssl", "req", "-x509", "-subj", "/CN=localhost", "-days", "1", *out, *options]
    subprocess.run(command, check=True, capture_output=True)
    return files


def ec(curve: str) -> tuple[str, ...]:
    return ("-nodes", "-newkey", "ec", "-pkeyopt", f"ec_paramgen_curve:{curve}")


UNUSABLE = f"a kind of key that gRPC cannot use; expected {KINDS}"


@pytest.mark.parametrize(
    ("options", "mistake"),
    [
        (("-nodes", "-newkey", "rsa:2048"), None),
        (ec("P-256"), None),
        (ec("P-384"), None),
        (ec("P-521"), None),
        (("-nodes", "-newkey", "ed25519"), None),
        (("-nodes", "-newkey", "ed448"), UNUSABLE),
        (("-nodes", "-newkey", "rsa-pss", "-pkeyopt", "rsa_keygen_bits:2048"), UNUSABLE),
        (ec("secp224r1"), UNUSABLE),
        (("-nodes", "-newkey", "rsa:1024"), "the key is too small; expected " + PEM),
        (
            ("-newkey", "rsa:2048", "-passout", "pass:x"),
            "cannot be read; expected " + PEM,
        ),
    ],
)
async def test_a_key_that_cannot_be_used_is_a_mistake(
    tmp_path: Path, options: tuple[str, ...], mistake: str | None
) -> None:
    """A key is accepted only if gRPC can listen with it; otherwise the cause is named."""
    files = openssl_pair(tmp_path, *options)
    lines = mistakes(files)
    assert bool(lines) == bool(mistake)
    if mistake:
        assert lines[0].endswith(f": {mistake}")
        return
    server = grpc.aio.server()
    assert server.add_secure_port("127.0.0.1:0", ServerCertificate(files).credentials())
    await server.stop(0)


# ---- on the wire ---------------------------------------------------------------------------------


Run = Callable[..., Any]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, secret: Mounted) -> Run:
    @asynccontextmanager
    async def running(*, verifies: bool = False, **variables: str) -> AsyncGenerator[Ports, None]:
        files = {"TLS_CERT_FILE": CERT, "TLS_KEY_FILE": KEY}
        files |= {"TLS_CLIENT_CA_FILE": CLIENT_CA} if verifies else {}
        settings = {"LISTEN": "127.0.0.1:0", "TLS_LISTEN": "127.0.0.1:0", "ADMIN_LISTEN": "off"}
        settings |= {name: str(secret.path / file) for name, file in files.items()}
        for name, value in (settings | variables).items():
            monkeypatch.setenv(f"GHEALTH_{name}", value)
        stop: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        started: asyncio.Future[Ports] = asyncio.get_running_loop().create_future()
        async with asyncio.timeout(60), asyncio.TaskGroup() as group:
            group.create_task(
                serve(Settings(), shutdown_trigger=lambda: stop, on_started=started.set_result)
            )
            yield await started
            stop.set_result(False)

    return running


async def refused(port: int, context: ssl.SSLContext) -> None:
    """Assert that a call is not answered; with TLS 1.3 the refusal comes after the handshake."""
    with pytest.raises((ssl.SSLError, OSError, AssertionError)):
        await wire.call(port, LIVENESS, tls=context)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_it_serves_beside_plaintext(
    run: Run, secret: Mounted, version: ssl.TLSVersion
) -> None:
    """TLS 1.2 and 1.3 are answered like plaintext, and neither port answers the other's clients."""
    client = client_of(AUTHORITY, version=version)
    async with run() as ports:
        (plain,), (secure,) = ports.listen, ports.tls_listen
        assert (await wire.call(plain, LIVENESS)).code == 0
        reply = await wire.call(secure, LIVENESS, tls=client)
        assert (reply.code, reply.data) == (0, b"\0\0\0\0\2\x08\1")
        assert ssl.DER_cert_to_PEM_cert(reply.certificate) in (secret.path / CERT).read_text()
        await refused(plain, client)
        with pytest.raises((OSError, AssertionError)):
            await wire.call(secure, LIVENESS)


@pytest.mark.parametrize("file", [CERT, KEY, CLIENT_CA])
async def test_a_byte_order_mark_is_ignored(
    run: Run, tmp_path: Path, secret: Mounted, file: str
) -> None:
    """Trap 29: gRPC does not read a file that begins with one, so it gets the file without."""
    new = pair_of(AUTHORITY) | {CLIENT_CA: AUTHORITY.cert_pem.bytes()}
    client = client_of(AUTHORITY, Mounted(tmp_path / "client", pair_of(AUTHORITY)).path)
    secret.swap(new | {file: BOM + new[file]})
    async with run(verifies=True) as ports:
        for _ in range(2):
            reply = await wire.call(ports.tls_listen[0], LIVENESS, tls=client)
            assert (reply.code, reply.certificate) == (0, der_of(new))
            new = pair_of(AUTHORITY) | {CLIENT_CA: AUTHORITY.cert_pem.bytes()}
            secret.swap(new | {file: BOM + new[file]})


async def test_a_bug_in_reading_ends_no_handshake(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trap 23: gRPC logs an exception of the callback, and serves with the old certificate."""

    def broken(_: Files) -> Any:
        raise ZeroDivisionError

    async with run() as ports:
        monkeypatch.setattr(tls, "_read", broken)
        reply = await wire.call(ports.tls_listen[0], LIVENESS, tls=client_of(AUTHORITY))
        assert reply.code == 0


async def test_without_a_plain_port(run: Run) -> None:
    """LISTEN=off leaves TLS alone, on every address of TLS_LISTEN."""
    async with run(LISTEN="off", TLS_LISTEN="127.0.0.1:0,localhost:0") as ports:
        assert ports.listen == ()
        for port in ports.tls_listen:
            assert (await wire.call(port, LIVENESS, tls=client_of(AUTHORITY))).code == 0


async def test_a_rotation_reaches_every_port(run: Run, secret: Mounted) -> None:
    """A new pair is served at the next handshake, on each of several ports, without a restart."""
    client = client_of(AUTHORITY)
    async with run(TLS_LISTEN="127.0.0.1:0,127.0.0.1:0") as ports:
        for _ in range(3):
            new = pair_of(AUTHORITY)
            secret.swap(new)
            for port in ports.tls_listen:
                reply = await wire.call(port, LIVENESS, tls=client)
                assert (reply.code, reply.certificate) == (0, der_of(new))
        secret.swap({CERT: new[CERT]})
        for port in ports.tls_listen:
            reply = await wire.call(port, LIVENESS, tls=client)
            assert (reply.code, reply.certificate) == (0, der_of(new))


async def test_client_certificates(run: Run, tmp_path: Path, secret: Mounted) -> None:
    """With TLS_CLIENT_CA_FILE only certificates of its authorities are answered, expired ones not.

    The authorities follow their file as the pair does; they may be in OpenSSL's own format.
    """
    good = Mounted(tmp_path / "good", pair_of(AUTHORITY)).path
    foreign = Mounted(tmp_path / "foreign", pair_of(OTHER)).path
    expired = Mounted(tmp_path / "expired", pair_of(AUTHORITY, expired=True)).path
    async with run(verifies=True) as ports:
        (port,) = ports.tls_listen
        assert (await wire.call(port, LIVENESS, tls=client_of(AUTHORITY, good))).code == 0
        for pair in (None, foreign, expired):
            await refused(port, client_of(AUTHORITY, pair))
        secret.swap(pair_of(AUTHORITY) | {CLIENT_CA: trusted(OTHER.cert_pem.bytes())})
        assert (await wire.call(port, LIVENESS, tls=client_of(AUTHORITY, foreign))).code == 0
        await refused(port, client_of(AUTHORITY, good))
        assert (await wire.call(ports.listen[0], LIVENESS)).code == 0


async def test_an_expired_certificate_is_served(run: Run, secret: Mounted) -> None:
    """An ALB does not verify it, and a pod that ended over it would be worse: clients decide."""
    expired = pair_of(AUTHORITY, expired=True)
    secret.swap(expired)
    trusting = client_of(AUTHORITY)
    careless = client_of(AUTHORITY)
    careless.check_hostname, careless.verify_mode = False, ssl.CERT_NONE
    async with run() as ports:
        (port,) = ports.tls_listen
        with pytest.raises(ssl.SSLCertVerificationError, match="expired"):
            await wire.call(port, LIVENESS, tls=trusting)
        reply = await wire.call(port, LIVENESS, tls=careless)
        assert (reply.code, reply.certificate) == (0, der_of(expired))


async def test_a_client_without_alpn_is_refused(run: Run) -> None:
    """Without `h2` in ALPN gRPC ends the connection (RFC 9113, section 3.2), and only that one."""
    async with run() as ports:
        (port,) = ports.tls_listen
        await refused(port, client_of(AUTHORITY, alpn=False))
        assert (await wire.call(port, LIVENESS, tls=client_of(AUTHORITY))).code == 0


@pytest.mark.parametrize("sent", [b"", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc"])
async def test_a_silent_client_is_cut_off_in_the_handshake(run: Run, sent: bytes) -> None:
    """A client that sends nothing, or half a ClientHello, holds a connection for seconds only."""
    async with run() as ports:
        (port,) = ports.tls_listen
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(sent)
        started = asyncio.get_running_loop().time()
        while await reader.read(100):
            pass
        assert asyncio.get_running_loop().time() - started < 20
        writer.close()


# ---- what ghealth trusts ------------------------------------------------------------------------


NEEDED = "since a target has an https URL"


class Paths:
    """The certificates of the system, which has none."""

    cafile = capath = None
    openssl_cafile, openssl_capath = "/a", "/b"


@pytest.fixture
def paths(monkeypatch: pytest.MonkeyPatch) -> type[Paths]:
    for name in ("SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(ssl, "get_default_verify_paths", Paths)
    return Paths


def test_a_trust_store_that_can_be_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, paths: type[Paths]
) -> None:
    """It is the system's, or what the variables name."""
    file = tmp_path / "ca.pem"
    AUTHORITY.cert_pem.write_to_path(file)
    with monkeypatch.context() as patched:
        patched.setattr(paths, "cafile", str(file))
        trust_store()
    monkeypatch.setenv("SSL_CERT_DIR", f"{tmp_path}:{tmp_path}")
    trust_store()
    monkeypatch.setenv("SSL_CERT_FILE", str(file))
    assert ssl.PEM_cert_to_DER_cert(file.read_text()) in trust_store().get_ca_certs(True)


@pytest.mark.usefixtures("paths")
@pytest.mark.parametrize(
    ("variables", "mistake"),
    [
        ({}, "SSL_CERT_FILE: unset, and no certificates in /a or /b; expected a PEM file, "),
        (
            {"SSL_CERT_FILE": "/gone"},
            "SSL_CERT_FILE: /gone: No such file or directory; expected a PEM file, ",
        ),
        (
            {"SSL_CERT_FILE": "/dev/null"},
            "SSL_CERT_FILE: /dev/null: no certificates in it; expected a PEM file, ",
        ),
        (
            {"SSL_CERT_DIR": "/etc:/gone"},
            "SSL_CERT_DIR: /etc:/gone: not a folder; expected folders, ",
        ),
    ],
)
def test_a_trust_store_that_cannot_be_read_is_a_mistake(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], mistake: str
) -> None:
    """OpenSSL ignores it silently, and every https probe would fail."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(CertificateError) as raised:
        trust_store()
    assert str(raised.value) == mistake + NEEDED


def test_openssl_without_ciphers_is_a_mistake(
    monkeypatch: pytest.MonkeyPatch, secret: Mounted
) -> None:
    """A FIPS configuration without its provider is named in one line."""

    def broken(*_: object) -> Any:
        error = ssl.SSLError(161, "library has no ciphers")
        error.reason = "LIBRARY_HAS_NO_CIPHERS"
        raise error

    monkeypatch.setenv("OPENSSL_CONF", "/x.cnf")
    monkeypatch.setattr(ssl, "create_default_context", broken)
    monkeypatch.setattr(ssl, "SSLContext", broken)
    expected = "OPENSSL_CONF: /x.cnf: library has no ciphers; expected ciphers"
    with pytest.raises(CertificateError) as raised:
        trust_store()
    assert str(raised.value) == f"{expected}, {NEEDED}"
    assert mistakes(files_in(secret)) == [expected]


def test_the_trust_store_is_as_strict_on_every_python(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trap 35: Python 3.13 would refuse certificates that Go and older Pythons accept."""
    create = ssl.create_default_context

    def strict() -> ssl.SSLContext:
        context = create()
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        return context

    monkeypatch.setattr(ssl, "create_default_context", strict)
    assert not trust_store().verify_flags & ssl.VERIFY_X509_STRICT

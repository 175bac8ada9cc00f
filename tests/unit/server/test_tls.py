import asyncio
import logging
import os
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
from ghealth.server.tls import CertificateError, Files, ServerCertificate
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


BROKEN: dict[str, Callable[[Pair], Pair]] = {
    "of two pairs": lambda pair: pair | {KEY: pair_of(AUTHORITY)[KEY]},
    "not PEM": lambda pair: pair | {CERT: b"?"},
    "without a key": lambda pair: {CERT: pair[CERT]},
    "without a certificate": lambda pair: {KEY: pair[KEY]},
}
REASONS = {
    "of two pairs": "{0}/tls.crt and {0}/tls.key: the certificate and the key do not match",
    "not PEM": "{0}/tls.crt and {0}/tls.key: expected PEM, the key without a password",
    "without a key": "{0}/tls.key: No such file or directory",
    "without a certificate": "{0}/tls.crt: No such file or directory",
}


@pytest.mark.parametrize("broken", BROKEN)
def test_a_broken_new_pair_is_not_served(
    secret: Mounted, fetches: Fetches, caplog: pytest.LogCaptureFixture, broken: str
) -> None:
    """The old one stays, with one line however many handshakes there are, until it is fixed."""
    caplog.set_level(logging.INFO)
    ServerCertificate(files_in(secret)).credentials()
    (fetch,) = fetches.ports
    new = pair_of(AUTHORITY)
    secret.swap(BROKEN[broken](new))
    assert [fetch() for _ in range(5)] == [None] * 5
    rejected = ("certificate_rejected", REASONS[broken].format(secret.path))
    assert events(caplog) == [rejected]
    assert caplog.records[0].levelno == logging.WARNING
    secret.swap(new)
    assert [fetch() for _ in range(2)] == [(new, None), None]
    assert events(caplog) == [rejected, ("certificate_replaced", "")]


def test_the_same_files_written_again_are_no_news(
    secret: Mounted, fetches: Fetches, caplog: pytest.LogCaptureFixture
) -> None:
    """A swap that changes no byte is not a new certificate, and has no line."""
    caplog.set_level(logging.INFO)
    ServerCertificate(files_in(secret)).credentials()
    secret.swap({CERT: (secret.path / CERT).read_bytes(), KEY: (secret.path / KEY).read_bytes()})
    assert fetches.ports[0]() is None
    assert events(caplog) == []


def test_files_that_change_while_they_are_read(
    secret: Mounted,
    fetches: Fetches,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A pair is read again if it was swapped meanwhile; one that never rests is not served."""
    caplog.set_level(logging.INFO)
    ServerCertificate(files_in(secret)).credentials()
    swaps: list[Pair] = []
    verify = tls._verify

    def swapped_meanwhile(files: Files, contents: Any) -> None:
        if swaps:
            secret.swap(swaps.pop())
        verify(files, contents)

    monkeypatch.setattr(tls, "_verify", swapped_meanwhile)
    last = pair_of(AUTHORITY)
    swaps += [last, pair_of(AUTHORITY)]
    secret.swap(pair_of(AUTHORITY))
    assert fetches.ports[0]() == (last, None)
    swaps += [pair_of(AUTHORITY) for _ in range(3)]
    secret.swap(pair_of(AUTHORITY))
    assert fetches.ports[0]() is None
    assert events(caplog) == [
        ("certificate_replaced", ""),
        ("certificate_rejected", "the files keep changing"),
    ]


def test_a_bug_in_reading_ends_no_handshake(
    secret: Mounted,
    fetches: Fetches,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Trap 23: nothing is raised into gRPC's thread; the old certificate stays, with one line."""

    def broken(_: Files) -> Any:
        raise ZeroDivisionError

    ServerCertificate(files_in(secret)).credentials()
    monkeypatch.setattr(tls, "_read", broken)
    secret.swap(pair_of(AUTHORITY))
    assert [fetches.ports[0]() for _ in range(3)] == [None] * 3
    assert events(caplog) == [("internal_error", "")]


def test_files_that_have_not_changed_are_not_read(
    secret: Mounted, fetches: Fetches, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trap 23: a handshake costs one stat() a file, and nothing is opened."""
    ServerCertificate(files_in(secret, verifies=True)).credentials()
    looked: list[object] = []
    real = os.stat

    def stat(path: Any, **options: Any) -> os.stat_result:
        looked.append(path)
        return real(path, **options)

    def forbidden(*_: object, **__: object) -> Any:
        raise AssertionError("opened")

    monkeypatch.setattr(os, "stat", stat)
    monkeypatch.setattr(Path, "read_bytes", forbidden)
    assert fetches.ports[0]() is None
    assert looked == [secret.path / name for name in (CERT, KEY, CLIENT_CA)]


def openssl_pair(folder: Path, *options: str) -> Files:
    """Make a self-signed pair with a key of a kind that trustme does not make."""
    files = Files(folder / "c.pem", folder / "k.pem", None)
    subprocess.run(
        [
            "openssl",
            "req",
            "-x509",
            "-subj",
            "/CN=localhost",
            "-days",
            "1",
            "-keyout",
            str(files.key),
            "-out",
            str(files.cert),
            *options,
        ],
        check=True,
        capture_output=True,
    )
    return files


SUPPORTED = {
    "RSA": ("-newkey", "rsa:2048"),
    "P-256": ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
    "P-384": ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-384"),
    "P-521": ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-521"),
    "Ed25519": ("-newkey", "ed25519"),
}
UNSUPPORTED = {
    "RSA-PSS": ("-newkey", "rsa-pss", "-pkeyopt", "rsa_keygen_bits:2048"),
    "P-224": ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:secp224r1"),
    "Ed448": ("-newkey", "ed448"),
}


@pytest.mark.parametrize("kind", [*SUPPORTED, *UNSUPPORTED])
async def test_keys_that_grpc_cannot_serve_with_are_mistakes(tmp_path: Path, kind: str) -> None:
    """A key is accepted when the settings are read if gRPC can listen with it, and only then."""
    files = openssl_pair(tmp_path, "-nodes", *(SUPPORTED | UNSUPPORTED)[kind])
    server = grpc.aio.server()
    credentials = grpc.ssl_server_credentials([(files.key.read_bytes(), files.cert.read_bytes())])
    if kind in SUPPORTED:
        server.add_secure_port("127.0.0.1:0", credentials)
        assert tls.mistakes(files) == []
    else:
        with pytest.raises(RuntimeError):
            server.add_secure_port("127.0.0.1:0", credentials)
        (line,) = tls.mistakes(files)
        assert line == (
            f"GHEALTH_TLS_CERT_FILE: {files.cert}: expected a key of RSA, ECDSA with P-256, "
            "P-384, P-521 or Ed25519"
        )
    await server.stop(0)


def test_an_encrypted_key_is_a_mistake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key with a password is refused; OpenSSL would ask for it on the terminal by itself."""
    real: Any = ssl.SSLContext.load_cert_chain

    def load(context: ssl.SSLContext, *paths: Any, password: Any = None) -> None:
        assert password is not None
        real(context, *paths, password=password)

    monkeypatch.setattr(ssl.SSLContext, "load_cert_chain", load)
    files = openssl_pair(tmp_path, "-newkey", "rsa:2048", "-passout", "pass:x")
    (line,) = tls.mistakes(files)
    assert line == (
        f"GHEALTH_TLS_CERT_FILE: {files.cert} and {files.key}: expected PEM, the key without a "
        "password"
    )


def test_the_mistake_names_the_file(secret: Mounted) -> None:
    """Each file that cannot be used is named with its variable and its path."""
    files = files_in(secret, verifies=True)
    assert tls.mistakes(None) == tls.mistakes(files) == []
    good = {path.name: path.read_bytes() for path in secret.path.iterdir() if path.is_file()}
    secret.swap(good | {CLIENT_CA: b"?"})
    assert tls.mistakes(files) == [
        f"GHEALTH_TLS_CLIENT_CA_FILE: {files.client_ca}: no certificates in it; expected PEM"
    ]
    secret.swap({name: good[name] for name in (CERT, CLIENT_CA)})
    assert tls.mistakes(files) == [f"GHEALTH_TLS_KEY_FILE: {files.key}: No such file or directory"]
    with pytest.raises(CertificateError, match="No such file"):
        ServerCertificate(files)


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

    The authorities follow their file as the pair does.
    """
    good = Mounted(tmp_path / "good", pair_of(AUTHORITY)).path
    foreign = Mounted(tmp_path / "foreign", pair_of(OTHER)).path
    expired = Mounted(tmp_path / "expired", pair_of(AUTHORITY, expired=True)).path
    async with run(verifies=True) as ports:
        (port,) = ports.tls_listen
        assert (await wire.call(port, LIVENESS, tls=client_of(AUTHORITY, good))).code == 0
        for pair in (None, foreign, expired):
            await refused(port, client_of(AUTHORITY, pair))
        secret.swap(pair_of(AUTHORITY) | {CLIENT_CA: OTHER.cert_pem.bytes()})
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


async def test_files_that_broke_since_the_settings_were_read(run: Run, secret: Mounted) -> None:
    """A pair that is gone when the port is opened is an error of one line, not a traceback."""
    settings: list[Settings] = []
    async with run():
        settings.append(Settings())
    secret.swap({})
    with pytest.raises(ValueError, match="No such file or directory") as raised:
        await serve(settings[0], shutdown_trigger=asyncio.Event().wait)
    assert str(raised.value) == (
        f"GHEALTH_TLS_CERT_FILE: {secret.path / CERT}: No such file or directory"
    )


# ---- what ghealth trusts ------------------------------------------------------------------------


class Paths:
    """Where OpenSSL looks for the certificates of the system."""

    openssl_cafile_env = "SSL_CERT_FILE"
    openssl_capath_env = "SSL_CERT_DIR"
    openssl_cafile = "/etc/cert.pem"
    openssl_capath = "/etc/certs"

    def __init__(self, found: str | None = "/etc/cert.pem") -> None:
        self.cafile = found
        self.capath = None


def test_a_trust_store_that_can_be_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No mistake where the system has certificates, or the variables name some."""
    for name in ("SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(ssl, "get_default_verify_paths", Paths)
    assert tls.trust_store_mistakes() == []
    file = tmp_path / "ca.pem"
    AUTHORITY.cert_pem.write_to_path(file)
    monkeypatch.setenv("SSL_CERT_FILE", str(file))
    monkeypatch.setenv("SSL_CERT_DIR", f"{tmp_path}:{tmp_path}")
    monkeypatch.setattr(ssl, "get_default_verify_paths", lambda: Paths(None))
    assert tls.trust_store_mistakes() == []
    names = [dict(parts)["organizationName"] for parts in issuers(tls.trust_store())]
    assert any("trustme" in name for name in names)


def issuers(context: ssl.SSLContext) -> list[list[tuple[str, str]]]:
    """Return the subjects of the authorities that a context trusts."""
    found: list[Any] = context.get_ca_certs()
    return [[pair for (pair,) in authority["subject"]] for authority in found]


def test_a_trust_store_that_cannot_be_read_is_a_mistake(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """OpenSSL ignores it silently, and every https probe would fail: each variable has its line."""
    monkeypatch.setattr(ssl, "get_default_verify_paths", lambda: Paths(None))
    for name in ("SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.delenv(name, raising=False)
    ending = ", since a target has an https URL"
    (line,) = tls.trust_store_mistakes()
    assert line == (
        "SSL_CERT_FILE: unset, and the system has no certificates in /etc/cert.pem or "
        f"/etc/certs; expected a PEM file{ending}"
    )
    empty = tmp_path / "empty.pem"
    empty.touch()
    for file, why in [(tmp_path / "x", "No such file or directory"), (empty, "no certificates in")]:
        monkeypatch.setenv("SSL_CERT_FILE", str(file))
        monkeypatch.setenv("SSL_CERT_DIR", f"{tmp_path}:{tmp_path / 'y'}")
        first, second = tls.trust_store_mistakes()
        assert first.startswith(f"SSL_CERT_FILE: {file}: {why}")
        assert first.endswith(f"expected a PEM file{ending}")
        assert second == (
            f"SSL_CERT_DIR: {tmp_path}:{tmp_path / 'y'}: not a folder; expected one with "
            f"certificates{ending}"
        )

"""What must be right before anything opens: probes, trusted certificates, the own certificate."""

from collections.abc import Mapping
from dataclasses import dataclass

from ghealth.health import GATEWAY, LIVENESS
from ghealth.probe import PROBES, AllOf, Probe, WithTimeout
from ghealth.server.tls import CertificateError, Files, ServerCertificate, trust_store
from ghealth.settings import Mistakes, Settings, Target, load, show_url


@dataclass(frozen=True, slots=True)
class Prepared:
    """A server that is ready to open its ports.

    Args:
        settings: Its settings.
        probes: The probe of each service, the gateway's first.
        urls: The URLs that are probed for each service, secrets masked; without URLs for custom
            probes and for `liveness`, which is the last.
        certificate: The certificate for `TLS_LISTEN`; None without one.
    """

    settings: Settings
    probes: Mapping[str, Probe]
    urls: Mapping[str, tuple[str, ...]]
    certificate: ServerCertificate | None


def configure() -> Prepared | Mistakes:
    """Read the environment and prepare; report the mistakes of both at once."""
    found = load()
    if isinstance(found, Settings):
        return prepare(found, {})
    prepared = prepare(found.rest, {})
    lines = prepared.lines if isinstance(prepared, Mistakes) else ()
    return Mistakes((*found.lines, *lines), found.rest)


def prepare(settings: Settings, own_probes: Mapping[str, Probe]) -> Prepared | Mistakes:
    """Create the probes and read the certificates, so that none of them fails later.

    Args:
        settings: The settings.
        own_probes: Custom probes by service name. They replace the probes from the settings.
    """
    lines = []
    if LIVENESS in own_probes:
        lines.append(f"probes: {LIVENESS!r} is reserved; expected other names")
    targets = {GATEWAY: [Target(url, settings.probe_headers) for url in settings.probe_url]}
    targets |= {name: [target] for name, target in settings.services.items()}
    targets = {name: several for name, several in targets.items() if name not in own_probes}

    trust = certificate = None
    try:
        if any(target.url.scheme == "https" for several in targets.values() for target in several):
            trust = trust_store()
    except CertificateError as error:
        lines.append(str(error))
    try:
        if settings.tls_listen and settings.tls_cert_file and settings.tls_key_file:
            certificate = ServerCertificate(
                Files(settings.tls_cert_file, settings.tls_key_file, settings.tls_client_ca_file)
            )
    except CertificateError as error:
        lines.append(str(error))
    if lines:
        return Mistakes(tuple(lines), settings)

    def create(target: Target) -> Probe:
        return PROBES[target.url.scheme](
            target.url,
            success_codes=settings.probe_success_codes,
            headers=target.headers,
            trust=trust,
        )

    made: dict[str, list[Probe]] = {GATEWAY: []}  # the gateway comes first
    made |= {name: [create(target) for target in several] for name, several in targets.items()}
    made |= {name: [probe] for name, probe in own_probes.items()}
    probes: dict[str, Probe] = {}
    for name, together in made.items():
        timed = [WithTimeout(probe, settings.probe_timeout) for probe in together]
        probes[name] = AllOf(timed) if len(timed) > 1 else timed[0]
    urls = {name: tuple(show_url(one.url) for one in targets.get(name, ())) for name in made}
    return Prepared(settings, probes, urls | {LIVENESS: ()}, certificate)

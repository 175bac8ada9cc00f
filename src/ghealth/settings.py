"""The settings: environment variables with the prefix `GHEALTH_`, read once, at startup."""

import difflib
import json
import os
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

import httpx
from pydantic import Field, GetCoreSchemaHandler, ValidationError, model_validator
from pydantic_core import CoreSchema, PydanticCustomError, core_schema
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from ghealth.address import ANY_IPV6, Address
from ghealth.durations import duration, show_seconds
from ghealth.health import GATEWAY, LIVENESS, POLICIES, PolicyName
from ghealth.matcher import HTTP_CODES, Matcher
from ghealth.probe import PROBES
from ghealth.server import tls

PREFIX: Final = "GHEALTH_"
MASK: Final = "***"
"""Shown in place of a secret."""

OFF: Final = "off"
LOG_LEVELS: Final = ("debug", "info", "warning", "error")

_MAX_SHOWN: Final = 80
_MAX_SECONDS: Final = 3600.0
_SERVICE_LINK: Final = re.compile(
    r"GHEALTH_(.+_)?(SERVICE_HOST|SERVICE_PORT(_.+)?|PORT(_\d+_(TCP|UDP|SCTP)(_.+)?)?)"
)
"""The variables that Kubernetes injects for a Service named ghealth (Kubernetes documentation,
"Discovering services", environment variables)."""


@dataclass(frozen=True, slots=True)
class Parsed:
    """How a field's text is parsed and shown: metadata of the field's annotation.

    Args:
        parse: Returns the value; raises ValueError, with a hint as its message if there is one.
        expected: What the variable accepts, for error messages.
        show: Renders the value in the variable's own syntax, secrets masked.
        mask: Renders an invalid text, secrets masked.
    """

    parse: Callable[[str], object]
    expected: str
    show: Callable[[Any], str] = str
    mask: Callable[[str], str] = str

    def __get_pydantic_core_schema__(self, _: object, __: GetCoreSchemaHandler) -> CoreSchema:
        """Validate by `parse`. Values that are not texts come from Python code and stay."""
        return core_schema.no_info_plain_validator_function(self._validate)

    def _validate(self, value: object) -> object:
        if not isinstance(value, str):
            return value
        try:
            return self.parse(value)
        except (ValueError, RecursionError) as error:
            hint = f" ({_cut(str(error))})" if isinstance(error, ValueError) and str(error) else ""
            raise PydanticCustomError(
                "setting",
                "invalid value {shown}; expected {expected}{hint}",
                {"shown": repr(_cut(self.mask(value))), "expected": self.expected, "hint": hint},
            ) from None


def _cut(text: str) -> str:
    return f"{text[: _MAX_SHOWN - 1]}…" if len(text) > _MAX_SHOWN else text


@dataclass(frozen=True, slots=True)
class Target:
    """The target of one service's probe.

    Args:
        url: Its URL.
        headers: Sent with each probe; the values are secrets.
    """

    url: httpx.URL
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Row:
    """One setting, as `ghealth settings` and the status page show it.

    Args:
        variable: Its name, with the prefix.
        value: The value in force, secrets masked; empty if unset.
        default: The value without the variable.
        meaning: One sentence.
    """

    variable: str
    value: str
    default: str
    meaning: str

    @property
    def changed(self) -> bool:
        """Whether the value differs from the default."""
        return self.value != self.default


@dataclass(frozen=True, slots=True)
class Mistakes:
    """The mistakes in the environment.

    Args:
        lines: One for each mistake: the variable, its value and what is expected.
    """

    lines: tuple[str, ...]


# Parsers and renderers, in the order of the fields that use them.


def _seconds(minimum: str) -> Parsed:
    least = duration(minimum)

    def parse(text: str) -> float:
        seconds = duration(text)
        if not least <= seconds <= _MAX_SECONDS:
            raise ValueError
        return seconds

    expected = f"a duration from {minimum} to 1h, such as 3s or 500ms"
    return Parsed(parse, expected, show=show_seconds)


def _words(*words: str) -> Parsed:
    def parse(text: str) -> str:
        if text.lower() not in words:
            raise ValueError
        return text.lower()

    expected = f"{', '.join(words[:-1])} or {words[-1]}"
    return Parsed(parse, expected, show=lambda value: value or "")


_BOOLEANS: Final = {"true": True, "1": True, "yes": True, "on": True}
_BOOLEANS_FALSE: Final = ("false", "0", "no", "off")


def _boolean(text: str) -> bool:
    word = text.lower()
    if word not in _BOOLEANS and word not in _BOOLEANS_FALSE:
        raise ValueError
    return word in _BOOLEANS


def _whole_number(minimum: int, maximum: int) -> Parsed:
    def parse(text: str) -> int:
        if not re.fullmatch("[0-9]{1,9}", text) or not minimum <= int(text) <= maximum:
            raise ValueError
        return int(text)

    return Parsed(parse, f"a whole number from {minimum} to {maximum}")


_BROADCAST: Final = "255.255.255.255"


def _local_address(text: str) -> Address:
    address = Address.parse(text)
    if address.host == _BROADCAST or (address.ip is not None and address.ip.is_multicast):
        # The kernel may listen there, but no client can connect.
        raise ValueError("multicast and broadcast addresses cannot be connected to")
    return address


def _addresses(text: str) -> tuple[Address, ...]:
    return () if text.lower() == OFF else tuple(map(_local_address, text.split(",")))


def _show_addresses(addresses: tuple[Address, ...]) -> str:
    return ",".join(map(str, addresses)) or OFF


_LISTEN: Final = Parsed(
    _addresses, "comma-separated host:port, such as [::]:25021, or off", show=_show_addresses
)


def _address(text: str) -> Address | None:
    return None if text.lower() == OFF else _local_address(text)


def _file(text: str) -> Path:
    try:
        Path(text).read_bytes()
    except OSError as error:
        raise ValueError(error.strerror) from None
    return Path(text)


_FILE: Final = Parsed(_file, "a file that can be read", show=lambda path: str(path or ""))

_HOST: Final = re.compile(rb"[0-9A-Za-z._:-]+")  # httpx escapes what cannot be in a host
_PORTS: Final = range(1, 65536)
_NEXT_URL: Final = re.compile(r"\s*,\s*(?=[a-z][a-z0-9+.-]*://)", re.IGNORECASE)
"""A comma before a scheme separates URLs; any other belongs to one of them."""


def _url(text: str) -> httpx.URL:
    try:
        url = httpx.URL(text)
    except (httpx.InvalidURL, UnicodeError):
        raise ValueError("not a URL") from None
    usable = (
        url.scheme in PROBES
        and _HOST.fullmatch(url.raw_host)
        and (url.port is None or url.port in _PORTS)
    )
    if not usable:
        raise ValueError("not a URL that can be probed")
    return url


def _urls(text: str) -> tuple[httpx.URL, ...]:
    return tuple(map(_url, _NEXT_URL.split(text)))


def show_url(url: httpx.URL) -> str:
    """Render a URL with its user info and query masked; str() masks only the password."""
    path, mark, query = url.raw_path.decode().partition("?")
    userinfo = f"{MASK}@" if url.userinfo else ""
    return f"{url.scheme}://{userinfo}{url.netloc.decode()}{path}{mark}{MASK if query else ''}"


def _mask_url(text: str) -> str:
    """Mask whatever could be a secret in a text that is not a URL."""
    before, mark, query = text.partition("?")
    if "@" in query:  # it may as well be a password with a question mark
        return MASK
    _, at, after = before.rpartition("@")
    return f"{MASK if at else ''}{at}{after}{mark}{MASK if mark else ''}"


def _object(text: str) -> dict[str, Any]:
    """Parse a JSON object in which each key occurs once."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) < len(pairs):
            raise ValueError("a name occurs twice")
        return dict(pairs)

    try:
        found = json.loads(text, object_pairs_hook=unique)
    except json.JSONDecodeError:
        raise ValueError("not JSON") from None
    if not isinstance(found, dict):
        raise ValueError("not a JSON object")  # noqa: TRY004 - the one that `Parsed` handles
    return found


_HEADER_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEADER_VALUE: Final = re.compile(r"([!-~]([\t -~]*[!-~])?)?")
_CONNECTION_HEADERS: Final = frozenset(
    (
        "connection",
        "content-length",
        "expect",
        "http2-settings",
        "keep-alive",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    )
)
"""Headers about connection and framing (RFC 9110, 7.6.1), which the HTTP library decides."""


def _headers(found: object) -> Mapping[str, str]:
    if not isinstance(found, dict):
        raise ValueError("headers are a JSON object")  # noqa: TRY004 - the one `Parsed` handles
    for name, value in found.items():
        if not _HEADER_NAME.fullmatch(name):
            raise ValueError("a header's name has other characters than RFC 9110 allows")
        if name.lower() in _CONNECTION_HEADERS:
            raise ValueError(f"the header {name} cannot be set")
        if not isinstance(value, str) or not _HEADER_VALUE.fullmatch(value):
            raise ValueError(f"the value of {name} is not printable ASCII text")
    if len({name.lower() for name in found}) < len(found):
        raise ValueError("two headers' names differ only in case")
    return found


def _target(found: object) -> Target:
    match found:
        case str():
            return Target(_url(found))
        case {"url": str(url), **rest} if set(rest) <= {"headers"}:
            return Target(_url(url), _headers(rest.get("headers", {})))
        case _:
            raise ValueError('expected a URL or {"url": …, "headers": {…}}')


def _services(text: str) -> Mapping[str, Target]:
    services = {}
    for name, found in _object(text).items():
        if name in (GATEWAY, LIVENESS):
            raise ValueError(f"the empty name and {LIVENESS} are reserved")
        try:
            name.encode()
        except UnicodeEncodeError:
            raise ValueError("a name is not UTF-8") from None
        try:
            services[name] = _target(found)
        except ValueError as error:
            raise ValueError(f"{name!r}: {error}") from None
    return services


def _show_services(services: Mapping[str, Target]) -> str:
    def show(target: Target) -> object:
        url = show_url(target.url)
        return {"url": url, "headers": _masked(target.headers)} if target.headers else url

    return json.dumps({name: show(found) for name, found in services.items()}, ensure_ascii=False)


def _masked(headers: Mapping[str, str]) -> dict[str, str]:
    return dict.fromkeys(headers, MASK)


_PREFIX_WORD: Final = re.compile(r"[!-+\--~]+")  # printable ASCII without comma and space


def _prefixes(text: str) -> tuple[str, ...]:
    prefixes = tuple(map(str.strip, text.split(",")))
    if not all(map(_PREFIX_WORD.fullmatch, prefixes)):
        raise ValueError
    return prefixes


Seconds = Annotated[float, _seconds("0s")]
PositiveSeconds = Annotated[float, _seconds("10ms")]


def _texts() -> dict[str, str]:
    """Return the variables' texts without surrounding white space, by their fields' names.

    Blank ones are unset.
    """
    texts = {}
    for name, text in os.environ.items():
        field_name = name.upper().removeprefix(PREFIX).lower()
        if name.upper().startswith(PREFIX) and field_name in Settings.model_fields and text.strip():
            texts[field_name] = text.strip()
    return texts


class Settings(BaseSettings):
    """All settings. `Settings()` reads the environment; keyword arguments precede it.

    Raises:
        pydantic.ValidationError: If a value is invalid.
    """

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        frozen=True,
        extra="forbid",
        validate_default=False,
        hide_input_in_errors=True,
        arbitrary_types_allowed=True,
    )

    listen: Annotated[
        tuple[Address, ...],
        _LISTEN,
        Field(
            description="Where to serve gRPC without TLS: comma-separated `host:port`, or `off` if "
            "`TLS_LISTEN` is set. `[::]` accepts IPv4 too, and works on a node without IPv6; port "
            "0 picks a free port"
        ),
    ] = (Address(ANY_IPV6, 25021),)
    tls_listen: Annotated[
        tuple[Address, ...],
        _LISTEN,
        Field(description="Where to serve gRPC with TLS, beside `LISTEN`"),
    ] = ()
    tls_cert_file: Annotated[
        Path | None,
        _FILE,
        Field(
            description="PEM file with the certificate chain for `TLS_LISTEN`; read again when it "
            "changes"
        ),
    ] = None
    tls_key_file: Annotated[
        Path | None, _FILE, Field(description="PEM file with the certificate's private key")
    ] = None
    tls_client_ca_file: Annotated[
        Path | None,
        _FILE,
        Field(
            description="PEM file with the authorities that client certificates are verified "
            "against; unset: client certificates are not required"
        ),
    ] = None
    probe_url: Annotated[
        tuple[httpx.URL, ...],
        Parsed(
            _urls,
            "comma-separated http:// or https:// URLs",
            show=lambda urls: ",".join(map(show_url, urls)),
            mask=_mask_url,
        ),
        Field(
            description="The gateway's readiness endpoint. With several URLs, comma-separated, the "
            "gateway is ready only if all are. `localhost` is 127.0.0.1 and ::1, whatever "
            "/etc/hosts contains"
        ),
    ] = (httpx.URL("http://localhost:15021/healthz/ready"),)
    probe_timeout: Annotated[
        PositiveSeconds,
        Field(description="Time for one whole probe, from the connection to the response headers"),
    ] = 3.0
    probe_success_codes: Annotated[
        Matcher,
        Parsed(
            lambda text: Matcher.parse(text, HTTP_CODES),
            "HTTP status codes from 200 to 499, such as 200 or 200,204 or 200-299",
        ),
        Field(
            description="The HTTP status codes that mean ready, from 200 to 499, in the syntax of "
            "an ALB's matcher: `200`, `200,204`, `200-299`"
        ),
    ] = Matcher(((200, 299),))
    probe_headers: Annotated[
        Mapping[str, str],
        Parsed(
            lambda text: _headers(_object(text)),
            "a JSON object of header names and values",
            show=lambda headers: json.dumps(_masked(headers)),
            mask=lambda _: MASK,
        ),
        Field(
            description="Headers sent to `PROBE_URL` only: a JSON object; the values are secrets"
        ),
    ] = {}
    services: Annotated[
        Mapping[str, Target],
        Parsed(
            _services,
            'a JSON object, service name to URL or to {"url": …, "headers": {…}}',
            show=_show_services,
            mask=lambda _: MASK,
        ),
        Field(
            description="More services, each with its own target: a JSON object, service name → "
            f'URL, or → `{{"url": …, "headers": {{…}}}}`; the empty name and `{LIVENESS}` are '
            "reserved"
        ),
    ] = {}
    cache_ttl: Annotated[
        Seconds,
        Field(
            description="How long a result, good or bad, is used for all callers, counted from the "
            "start of its probe; `0`: every check probes (simultaneous ones share a probe)"
        ),
    ] = 1.0
    watch_interval: Annotated[
        PositiveSeconds, Field(description="Time between two probes while a Watch is open")
    ] = 1.0
    answer: Annotated[
        PolicyName,
        _words(*POLICIES),
        Field(
            description="The answer for a service that is not serving: `status` (`OK` + "
            "`NOT_SERVING`), `code` (`UNAVAILABLE`), or `auto`: the status for callers known to "
            "read the message, the code for all others"
        ),
    ] = "auto"
    status_callers: Annotated[
        tuple[str, ...],
        Parsed(_prefixes, "comma-separated prefixes, such as grpc-,Envoy/HC", show=",".join),
        Field(
            description="Callers that read the message: those whose user agent has a word that "
            "begins with one of these; replaces the default"
        ),
    ] = ("grpc-", "Envoy/HC")
    reflection: Annotated[
        bool,
        Parsed(_boolean, "true or false", show=lambda value: str(value).lower()),
        Field(description="Whether to serve reflection (v1 and v1alpha), for tools like grpcurl"),
    ] = True
    drain_delay: Annotated[
        Seconds,
        Field(
            description='How long to keep answering "not serving" after SIGTERM; SIGINT (Ctrl-C) '
            "skips it"
        ),
    ] = 5.0
    shutdown_grace: Annotated[
        Seconds, Field(description="How long open calls may take after the drain")
    ] = 1.0
    max_watches: Annotated[
        int,
        _whole_number(0, 100_000),
        Field(
            description="Maximum number of open watches; more get `RESOURCE_EXHAUSTED`. Watches "
            "never cause a Check to be refused"
        ),
    ] = 100
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"],
        _words(*LOG_LEVELS),
        Field(description="Lowest level that is logged: `debug`, `info`, `warning`, `error`"),
    ] = "info"
    log_format: Annotated[
        Literal["text", "json"] | None,
        _words("text", "json"),
        Field(description="`text` or `json`; unset: `text` on a terminal, otherwise `json`"),
    ] = None
    admin_listen: Annotated[
        Address | None,
        Parsed(
            _address, "host:port, such as [::]:25022, or off", show=lambda value: str(value or OFF)
        ),
        Field(
            description="Where to serve the status page, metrics and HTTP health endpoints: "
            "`host:port`, or `off`"
        ),
    ] = Address("127.0.0.1", 25022)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - the names are pydantic-settings'
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Read arguments first, then the environment by the rules of this module."""
        return (init_settings, InitSettingsSource(settings_cls, _texts()))

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        lines = self.mistakes_between()
        if lines:
            raise PydanticCustomError("settings", "{lines}", {"lines": "\n".join(lines)})
        return self

    def mistakes_between(self, invalid: Collection[str] = ()) -> list[str]:
        """Return mistakes that involve several settings, and targets that cannot be probed.

        Args:
            invalid: Fields without a valid value; rules that need them are skipped.
        """
        rules = (
            ({"listen", "tls_listen", "admin_listen"}, self._listen_mistakes),
            (
                {"tls_listen", "tls_cert_file", "tls_key_file", "tls_client_ca_file"},
                self._tls_mistakes,
            ),
            ({"probe_url", "probe_headers", "services"}, self._probe_mistakes),
        )
        return [line for fields, rule in rules if fields.isdisjoint(invalid) for line in rule()]

    def _listen_mistakes(self) -> list[str]:
        lines = []
        if not (self.listen or self.tls_listen):
            lines.append("GHEALTH_LISTEN: off; expected an address, or GHEALTH_TLS_LISTEN too")
        taken = [("LISTEN", address) for address in self.listen]
        taken += [("TLS_LISTEN", address) for address in self.tls_listen]
        if self.admin_listen is not None and "admin_listen" in self.model_fields_set:
            taken.append(("ADMIN_LISTEN", self.admin_listen))
        for number, (name, address) in enumerate(taken):
            for wildcard in (found for _, found in taken if found.covers(address)):
                note = ", [::] accepts IPv4 too" if wildcard.host == ANY_IPV6 else ""
                lines.append(
                    f"{PREFIX}{name}: {address} is part of {wildcard}; expected one of them{note}"
                )
            if address.port and address in (earlier for _, earlier in taken[:number]):
                lines.append(
                    f"{PREFIX}{name}: {address} occurs twice; expected different addresses"
                )
        return lines

    def _tls_mistakes(self) -> list[str]:
        pair = {"CERT": self.tls_cert_file, "KEY": self.tls_key_file}
        files = {**pair, "CLIENT_CA": self.tls_client_ca_file}
        if not self.tls_listen:
            return [
                f"GHEALTH_TLS_{name}_FILE: set without GHEALTH_TLS_LISTEN; expected both"
                for name, path in files.items()
                if path is not None
            ]
        missing = [
            f"GHEALTH_TLS_{name}_FILE: unset; expected a PEM file, since GHEALTH_TLS_LISTEN is set"
            for name, path in pair.items()
            if path is None
        ]
        return missing or tls.mistakes(self.tls_files)

    def _probe_mistakes(self) -> list[str]:
        lines = []
        targets = [("PROBE_URL", Target(url, self.probe_headers)) for url in self.probe_url]
        targets += [("SERVICES", target) for target in self.services.values()]
        for name, target in targets:
            try:
                PROBES[target.url.scheme](
                    target.url, success_codes=self.probe_success_codes, headers=target.headers
                )
            except ValueError as error:
                lines.append(f"{PREFIX}{name}: {show_url(target.url)} cannot be probed: {error}")
        if self.has_https:
            lines += tls.trust_store_mistakes()
        return lines

    @property
    def tls_files(self) -> tls.Files | None:
        """The files of the certificate for `TLS_LISTEN`, None without one."""
        if self.tls_cert_file is None or self.tls_key_file is None:
            return None
        return tls.Files(self.tls_cert_file, self.tls_key_file, self.tls_client_ca_file)

    @property
    def has_https(self) -> bool:
        """Whether any target needs TLS."""
        urls = [*self.probe_url, *(target.url for target in self.services.values())]
        return any(url.scheme == "https" for url in urls)

    def rows(self) -> tuple[Row, ...]:
        """Describe every setting, in the order of the documentation, secrets masked."""
        return tuple(
            Row(
                variable=PREFIX + name.upper(),
                value=_parsed(name).show(getattr(self, name)),
                default=_parsed(name).show(found.default),
                meaning=found.description or "",
            )
            for name, found in type(self).model_fields.items()
        )


def _parsed(field_name: str) -> Parsed:
    metadata = Settings.model_fields[field_name].metadata
    return next(item for item in metadata if isinstance(item, Parsed))


def load() -> Settings | Mistakes:
    """Read the environment and report all mistakes in it at once."""
    lines = [*_unknown_names(), *_repeated_names()]
    try:
        settings = Settings()
    except ValidationError as error:
        for found in error.errors(include_url=False, include_input=False):
            where = f"{PREFIX}{str(found['loc'][0]).upper()}: " if found["loc"] else ""
            lines += (f"{where}{line}" for line in found["msg"].splitlines())
        invalid = {str(found["loc"][0]) for found in error.errors() if found["loc"]}
        if invalid:
            texts = {name: text for name, text in _texts().items() if name not in invalid}
            values = {name: _parsed(name).parse(text) for name, text in texts.items()}
            lines += Settings.model_construct(**values).mistakes_between(invalid)  # type: ignore[arg-type]
    return Mistakes(tuple(lines)) if lines else settings


def _unknown_names() -> list[str]:
    known = [name.upper() for name in Settings.model_fields]
    lines = []
    for name in sorted(os.environ):
        variable = name.upper()
        suffix = variable.removeprefix(PREFIX)
        if not variable.startswith(PREFIX) or suffix in known:
            continue
        if suffix == "PORT" and os.environ[name].strip().isdigit():
            advice = "expected the port in GHEALTH_LISTEN, such as [::]:25021"
        elif _SERVICE_LINK.fullmatch(variable):
            continue
        elif nearest := difflib.get_close_matches(suffix, known, n=1):
            advice = f"did you mean {PREFIX}{nearest[0]}?"
        else:
            advice = "'ghealth settings' lists all settings"
        lines.append(f"{name}: unknown setting; {advice}")
    return lines


def _repeated_names() -> list[str]:
    spellings = defaultdict(list)
    for name in sorted(os.environ):
        if name.upper().startswith(PREFIX):
            spellings[name.upper()].append(name)
    return [
        f"{' and '.join(names)}: the same setting; expected one of them"
        for names in spellings.values()
        if len(names) > 1
    ]

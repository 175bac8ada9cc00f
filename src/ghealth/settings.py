"""The settings: environment variables with the prefix `GHEALTH_`, read once, at startup."""

import difflib
import json
import os
import re
import reprlib
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Literal, Self

import httpx
from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    PlainValidator,
    StringConstraints,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from ghealth.address import (
    DEFAULT_LISTEN,
    HOST_NAME,
    OFF,
    Address,
    listen_address,
    listen_addresses,
)
from ghealth.durations import duration, show_seconds
from ghealth.health import GATEWAY, LIVENESS, PolicyName
from ghealth.matcher import HTTP_CODES, Matcher
from ghealth.probe import PROBES

PREFIX: Final = "GHEALTH_"
MASK: Final = "***"
"""Shown in place of a secret."""

_MAX_SHOWN: Final = 80
_ERROR_TYPE: Final = "setting"
"""The type of this module's errors in a ValidationError."""

_PORT: Final = "GHEALTH_PORT"
"""With a number it was meant as a setting; Kubernetes injects it with a URL."""

_SERVICE_LINK: Final = re.compile(
    r"GHEALTH_(.+_)?(SERVICE_HOST|SERVICE_PORT(_.+)?|PORT(_\d+_(TCP|UDP|SCTP)(_.+)?)?)"
)
"""The variables that Kubernetes injects for a Service named ghealth (Kubernetes documentation,
"Discovering services", environment variables)."""


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
        rest: The settings with the default in place of each invalid value.
    """

    lines: tuple[str, ...]
    rest: "Settings"


# Types of fields: how their texts are parsed, what is valid, and how values are shown.


def _show(value: object) -> str:
    if value is None:
        return ""
    return _utf_8(str(value).lower() if isinstance(value, bool) else str(value))


def _utf_8(text: str) -> str:
    """Escape what is not UTF-8: a path and a name may have any bytes."""
    return text.encode(errors="backslashreplace").decode()


@dataclass(frozen=True, slots=True)
class _Syntax:
    """How a setting is written.

    Args:
        expected: What the setting accepts, for error messages.
        show: Formats a value in the setting's syntax, secrets masked.
        mask: Masks the secrets in an invalid value.
    """

    expected: str
    show: Callable[[Any], str] = _show
    mask: Callable[[str], str] = str


def _parsed(kind: type, parse: Callable[[str], object]) -> PlainValidator:
    """Validate texts, and values of a type by their texts."""

    def validate(value: object) -> object:
        if isinstance(value, (str, kind)):
            with suppress(TypeError):  # one whose parts have wrong types has no text
                return parse(str(value))
        raise ValueError

    return PlainValidator(validate)


def _show_addresses(addresses: Collection[Address]) -> str:
    return ",".join(map(str, addresses)) or OFF


Addresses = Annotated[
    tuple[Annotated[Address, _parsed(Address, listen_address)], ...],
    BeforeValidator(lambda value: listen_addresses(value) if isinstance(value, str) else value),
    _Syntax("comma-separated host:port, such as [::]:25021, or off", show=_show_addresses),
]


def _readable(path: Path) -> Path:
    try:
        path.open("rb").close()
    except OSError as error:
        raise ValueError(error.strerror) from None
    return path


File = Annotated[
    Annotated[Path, AfterValidator(_readable)] | None, _Syntax("a file that can be read")
]


def _seconds(value: object) -> object:
    if isinstance(value, timedelta):
        return value.total_seconds()
    return duration(value) if isinstance(value, str) else value


Seconds = Annotated[
    float,
    BeforeValidator(_seconds),
    Field(strict=True, ge=0, le=3600),
    _Syntax("a duration from 0s to 1h, such as 3s or 500ms", show=show_seconds),
]
PositiveSeconds = Annotated[
    Seconds,
    Field(ge=0.01),
    _Syntax("a duration from 10ms to 1h, such as 3s or 500ms", show=show_seconds),
]


def _whole_number(value: object) -> object:
    return int(value) if isinstance(value, str) and re.fullmatch("[0-9]{1,9}", value) else value


def _word(value: object) -> object:
    word = value.lower() if isinstance(value, str) else value
    return "warning" if word == "warn" else word


_HOST: Final = re.compile(rf"{HOST_NAME.pattern}|[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*")
_PORTS: Final = range(1, 65536)
_SEVERAL_URLS: Final = re.compile(r"[\s,]|[;|][a-z][a-z0-9+.-]*://", re.IGNORECASE)
"""A folded YAML list becomes URLs that are separated by spaces."""


def _url(text: str) -> httpx.URL:
    if _SEVERAL_URLS.search(text):
        raise ValueError("several URLs in one, white space, or a comma; in a URL, write %2C")
    try:
        url = httpx.Request("GET", text).url  # some names are refused only in a request
    except (httpx.InvalidURL, UnicodeError):
        raise ValueError("not a URL") from None
    if url.scheme not in PROBES:
        raise ValueError("no http:// or https:// before or after a comma; in a URL, write %2C")
    valid_port = url.port is None or url.port in _PORTS
    if not (valid_port and _HOST.fullmatch(url.raw_host.decode())):
        raise ValueError("not a URL that can be probed")
    return url


def _urls(value: object) -> object:
    return [one.strip() for one in value.split(",")] if isinstance(value, str) else value


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


Url = Annotated[httpx.URL, _parsed(httpx.URL, _url)]


def _json(value: object) -> object:
    """Parse a JSON object in which each key occurs once."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) < len(pairs):
            raise ValueError("a name occurs twice")
        return dict(pairs)

    if not isinstance(value, str):
        return value
    try:
        return json.loads(value, object_pairs_hook=unique)
    except (json.JSONDecodeError, RecursionError):
        raise ValueError("not JSON") from None


_HEADER_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEADER_VALUE: Final = re.compile(r"([!-~]([\t -~]*[!-~])?)?")
_CONNECTION_HEADER: Final = re.compile(
    "connection|content-length|expect|http2-settings|keep-alive|proxy-connection|te|trailer|"
    "transfer-encoding|upgrade",
    re.IGNORECASE,
)
"""Headers about connection and framing (RFC 9110, 7.6.1), which the HTTP library decides."""


def _headers(headers: dict[str, str]) -> dict[str, str]:
    for name, value in headers.items():
        if not _HEADER_NAME.fullmatch(name):
            raise ValueError("a header's name has other characters than RFC 9110 allows")
        if _CONNECTION_HEADER.fullmatch(name):
            raise ValueError(f"the header {name} cannot be set")
        if not _HEADER_VALUE.fullmatch(value):
            raise ValueError(f"the value of {name} is not printable ASCII text")
    if len({name.lower() for name in headers}) < len(headers):
        raise ValueError("two headers' names differ only in case")
    return headers


def _masked(headers: Mapping[str, str]) -> dict[str, str]:
    return dict.fromkeys(headers, MASK)


Headers = Annotated[dict[str, str], AfterValidator(_headers)]


@dataclass(frozen=True, slots=True)
class Target:
    """The target of one service's probe.

    Args:
        url: Its URL.
        headers: Sent with each probe; the values are secrets.
    """

    __pydantic_config__: ClassVar = ConfigDict(extra="forbid", revalidate_instances="always")

    url: Url
    headers: Headers = field(default_factory=dict)


def _target(value: object) -> object:
    return {"url": value} if isinstance(value, (str, httpx.URL)) else value


def _service_name(name: str) -> str:
    if name in (GATEWAY, LIVENESS):
        raise ValueError(f"the empty name and {LIVENESS} are reserved")
    if _utf_8(name) != name:
        raise ValueError("a name is not UTF-8")
    return name


def _show_services(services: Mapping[str, Target]) -> str:
    def show(target: Target) -> object:
        url = show_url(target.url)
        return {"url": url, "headers": _masked(target.headers)} if target.headers else url

    return json.dumps({name: show(found) for name, found in services.items()}, ensure_ascii=False)


_Word = Annotated[str, StringConstraints(strip_whitespace=True, pattern=r"^[!-+\--~]+$")]
"""Printable ASCII without comma and space."""


class Settings(BaseSettings):
    """All settings. `Settings()` reads the environment; keyword arguments precede it.

    Raises:
        pydantic.ValidationError: If a value is invalid; it has all mistakes.
    """

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        hide_input_in_errors=True,
    )

    listen: Addresses = (DEFAULT_LISTEN,)
    """Where to serve gRPC without TLS: comma-separated `host:port`, or `off` if `TLS_LISTEN` is
    set. The host is an IP address or `localhost`; `[::]` accepts IPv4 too, and works on a node
    without IPv6; port 0 picks a free port"""

    tls_listen: Addresses = ()
    """Where to serve gRPC with TLS, beside `LISTEN`"""

    tls_cert_file: File = None
    """PEM file with the certificate chain for `TLS_LISTEN`; read again when it changes"""

    tls_key_file: File = None
    """PEM file with the certificate's private key"""

    tls_client_ca_file: File = None
    """PEM file with the authorities that client certificates are verified against; unset: client
    certificates are not required"""

    probe_url: Annotated[
        tuple[Url, ...],
        BeforeValidator(_urls),
        Field(min_length=1),
        _Syntax(
            "comma-separated http:// or https:// URLs",
            show=lambda urls: ",".join(map(show_url, urls)),
            mask=_mask_url,
        ),
    ] = (httpx.URL("http://localhost:15021/healthz/ready"),)
    """The gateway's readiness endpoint. With several URLs, comma-separated, the gateway is ready
    only if all are. `localhost` is 127.0.0.1 and ::1, whatever /etc/hosts contains"""

    probe_timeout: PositiveSeconds = 3.0
    """Time for one whole probe, from the connection to the response headers"""

    probe_success_codes: Annotated[
        Matcher,
        _parsed(Matcher, lambda text: Matcher.parse(text, HTTP_CODES)),
        _Syntax("HTTP status codes from 200 to 499, such as 200 or 200,204 or 200-299"),
    ] = Matcher(((200, 299),))
    """The HTTP status codes that mean ready, from 200 to 499, in the syntax of an ALB's matcher:
    `200`, `200,204`, `200-299`"""

    probe_headers: Annotated[
        Headers,
        BeforeValidator(_json),
        _Syntax(
            "a JSON object of header names and values",
            show=lambda headers: json.dumps(_masked(headers)),
            mask=lambda _: MASK,
        ),
    ] = {}
    """Headers sent to `PROBE_URL` only: a JSON object; the values are secrets"""

    services: Annotated[
        dict[
            Annotated[str, AfterValidator(_service_name)],
            Annotated[Target, BeforeValidator(_target)],
        ],
        BeforeValidator(_json),
        _Syntax(
            'a JSON object, service name to URL or to {"url": …, "headers": {…}}',
            show=_show_services,
            mask=lambda _: MASK,
        ),
    ] = {}
    """More services, each with its own target: a JSON object, service name → URL, or →
    `{"url": …, "headers": {…}}`; the empty name and `liveness` are reserved"""

    cache_ttl: Seconds = 1.0
    """How long a result, good or bad, is used for all callers, counted from the start of its
    probe; `0`: every check probes (simultaneous ones share a probe)"""

    watch_interval: PositiveSeconds = 1.0
    """Time between two probes while a Watch is open"""

    answer: Annotated[PolicyName, BeforeValidator(_word), _Syntax("auto, status or code")] = "auto"
    """The answer for a service that is not serving: `status` (`OK` + `NOT_SERVING`), `code`
    (`UNAVAILABLE`), or `auto`: the status for callers known to read the message, the code for all
    others"""

    status_callers: Annotated[
        tuple[_Word, ...],
        BeforeValidator(lambda value: value.split(",") if isinstance(value, str) else value),
        _Syntax("comma-separated prefixes, such as grpc-,Envoy/HC", show=",".join),
    ] = ("grpc-", "Envoy/HC")
    """Callers that read the message: those whose user agent has a word that begins with one of
    these; replaces the default"""

    reflection: Annotated[bool, _Syntax("true or false")] = True
    """Whether to serve reflection (v1 and v1alpha), for tools like grpcurl"""

    drain_delay: Seconds = 5.0
    """How long to keep answering "not serving" after SIGTERM; SIGINT (Ctrl-C) skips it"""

    shutdown_grace: Seconds = 1.0
    """How long open calls may take after the drain"""

    max_watches: Annotated[
        int,
        BeforeValidator(_whole_number),
        Field(strict=True, ge=0, le=100_000),
        _Syntax("a whole number from 0 to 100000"),
    ] = 100
    """Maximum number of open watches; more get `RESOURCE_EXHAUSTED`. Watches never cause a Check
    to be refused"""

    log_level: Annotated[
        Literal["debug", "info", "warning", "error"],
        BeforeValidator(_word),
        _Syntax("debug, info, warning or error"),
    ] = "info"
    """Lowest level that is logged: `debug`, `info`, `warning` (or `warn`), `error`"""

    log_format: Annotated[
        Literal["text", "json"] | None, BeforeValidator(_word), _Syntax("text or json")
    ] = None
    """`text` or `json`; unset: `text` on a terminal, otherwise `json`"""

    admin_listen: Annotated[
        Addresses,
        Field(max_length=1),
        _Syntax("host:port, such as [::]:25022, or off", show=_show_addresses),
    ] = (Address("127.0.0.1", 25022),)
    """Where to serve the status page, metrics and HTTP health endpoints: `host:port`, or `off`"""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        *_: Any,
        **__: Any,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Read arguments first, then the environment by the rules of this module."""
        return (init_settings, InitSettingsSource(settings_cls, _environment()))

    @model_validator(mode="wrap")
    @classmethod
    def _report_all(cls, values: Any, validate: ModelWrapValidatorHandler[Self]) -> Self:
        """Report the mistakes in all fields and between them at once.

        pydantic leaves out those between fields if a field is invalid.
        """
        mistakes: dict[str, str] = {}
        try:
            settings = validate(values)
        except ValidationError as error:
            for found in error.errors(include_url=False):
                if found["type"] == _ERROR_TYPE or not found["loc"]:
                    raise  # by __init__, which has reported all; or the values are not a mapping
                name = str(found["loc"][0])
                mistakes.setdefault(name, _explain(name, values[name], found))
            settings = validate({name: values[name] for name in values.keys() - mistakes.keys()})
        conflicts = settings._conflicts(mistakes.keys())  # noqa: SLF001 - a method of this class
        mistakes |= dict(conflicts)
        if not mistakes:
            return settings
        errors: list[InitErrorDetails] = []
        for name, text in mistakes.items():
            # A function: pydantic would show a model's secrets in the error's JSON.
            context = {"text": text, "rest": lambda: settings}
            kind = PydanticCustomError(_ERROR_TYPE, "{text}", context)
            errors.append({"type": kind, "loc": (name,), "input": None})
        raise ValidationError.from_exception_data(cls.__name__, errors, hide_input=True)

    def _conflicts(self, invalid: Collection[str]) -> Iterator[tuple[str, str]]:
        """Yield the mistakes between valid settings: a name, and what is wrong."""
        lists = ("listen", "tls_listen")
        if not any(name in invalid or getattr(self, name) for name in lists):
            yield "listen", "off; expected an address, or GHEALTH_TLS_LISTEN too"
        used: list[Address] = []
        for name in (*lists, "admin_listen"):
            for address in () if name in invalid else getattr(self, name):
                if address.port and address in used and name in self.model_fields_set:
                    yield name, f"{address} occurs twice; expected different addresses"
                used.append(address)
        if "tls_listen" in invalid:
            return
        for name in ("tls_cert_file", "tls_key_file", "tls_client_ca_file"):
            is_set = name in invalid or getattr(self, name) is not None
            if is_set and name not in invalid and not self.tls_listen:
                yield name, "set without GHEALTH_TLS_LISTEN; expected both"
            if self.tls_listen and not is_set and name != "tls_client_ca_file":
                yield name, "unset; expected a PEM file, since GHEALTH_TLS_LISTEN is set"

    def rows(self) -> tuple[Row, ...]:
        """Describe every setting, in the order of the documentation, secrets masked."""
        return tuple(
            Row(
                variable=PREFIX + name.upper(),
                value=_syntax(name).show(getattr(self, name)),
                default=_syntax(name).show(found.default),
                meaning=" ".join((found.description or "").split()),
            )
            for name, found in type(self).model_fields.items()
        )

    def __repr_args__(self) -> list[tuple[str | None, str]]:
        return [(row.variable, row.value) for row in self.rows()]


def _syntax(name: str) -> _Syntax:
    metadata = Settings.model_fields[name].metadata
    return next(item for item in reversed(metadata) if isinstance(item, _Syntax))


def _cut(text: str) -> str:
    return f"{text[: _MAX_SHOWN - 1]}…" if len(text) > _MAX_SHOWN else text


def _explain(name: str, value: object, error: ErrorDetails) -> str:
    if name not in Settings.model_fields:
        return _unknown(name)
    syntax = _syntax(name)
    if isinstance(value, str):
        shown = repr(_cut(syntax.mask(value)))
    else:
        shown = reprlib.repr(value) if syntax.mask is str else MASK
    where = [part for part in error["loc"][1:] if isinstance(part, str) and part != "[key]"]
    if error["type"] == "value_error":
        where.append(str(error["ctx"]["error"]))
    elif where:  # for other values, "expected" has it
        where.append(error["msg"])
    hint = _cut(_utf_8(": ".join(filter(None, where))))
    return f"invalid value {shown}; expected {syntax.expected}{f' ({hint})' if hint else ''}"


def _unknown(name: str) -> str:
    is_variable = name.upper().startswith(PREFIX)
    suffix = name.upper().removeprefix(PREFIX).lower() if is_variable else name
    if is_variable and suffix in Settings.model_fields:
        return f"{PREFIX}{suffix.upper()} is set twice, in different case; expected one of them"
    if name.upper() == _PORT:
        return "unknown setting; expected the port in GHEALTH_LISTEN, such as [::]:25021"
    if nearest := difflib.get_close_matches(suffix, Settings.model_fields, n=1):
        known = f"{PREFIX}{nearest[0].upper()}" if is_variable else nearest[0]
        return f"unknown setting; did you mean {known}?"
    return "unknown setting; 'ghealth settings' lists all settings"


def _environment() -> dict[str, str]:
    """Return the texts in the environment without surrounding white space, by their fields' names.

    Blank ones are unset. Unknown variables, and further spellings of a known one, keep their names:
    the model refuses them.
    """
    texts = {}
    seen = set()
    for name, text in sorted((name, text.strip()) for name, text in os.environ.items()):
        variable = name.upper()
        field_name = variable.removeprefix(PREFIX).lower()
        if not variable.startswith(PREFIX):
            continue
        if field_name in Settings.model_fields and field_name not in seen:
            seen.add(field_name)
            if text:
                texts[field_name] = text
        elif not _SERVICE_LINK.fullmatch(variable) or (variable == _PORT and text.isdigit()):
            texts[_utf_8(name)] = text
    return texts


def load() -> Settings | Mistakes:
    """Read the environment and report all mistakes in it at once."""
    try:
        return Settings()
    except ValidationError as error:
        found = error.errors(include_url=False)
    lines = []
    for one in found:
        name = str(one["loc"][0])
        variable = f"{PREFIX}{name.upper()}" if name in Settings.model_fields else name
        lines.append(f"{variable}: {one['msg']}")
    return Mistakes(tuple(lines), rest=found[0]["ctx"]["rest"]())

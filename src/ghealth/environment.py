"""Reading the settings from the environment, and finding every mistake in it at once.

Only who reads the settings imports this module: pydantic and httpx, which it is made of, take
longer to import and more memory than all the rest of ghealth.
"""

import base64
import difflib
import importlib.util
import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

import httpx
from pydantic import Field, PlainValidator, ValidationError
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from ghealth.address import Address
from ghealth.answers import POLICIES
from ghealth.matcher import HTTP_CODES, Matcher
from ghealth.settings import Mistakes, Row, Settings
from ghealth.status import GATEWAY, LIVENESS
from ghealth.target import Target

PREFIX: Final = "GHEALTH_"

_EXTRA: Final = "prometheus_client"

MASK: Final = "***"
"""Stands for a secret wherever settings are shown."""

_SHOWN_LENGTH: Final = 80
_SERVICE_LINK: Final = re.compile(
    r"GHEALTH_(.+_)?(SERVICE_HOST|SERVICE_PORT(_.+)?|PORT(_\d+_(TCP|UDP|SCTP)(_.+)?)?)"
)


@dataclass(frozen=True, slots=True)
class _Takes:
    """What a variable takes, as a mistake in it is told."""

    text: str


def _addresses(text: str) -> tuple[Address, ...]:
    return tuple(map(Address.parse, text.split(",")))


def _http_codes(text: str) -> Matcher:
    return Matcher.parse(text, HTTP_CODES)


def _policy(text: str) -> str:
    if text not in POLICIES:
        raise ValueError(text)
    return text


def _prefixes(text: str) -> tuple[str, ...]:
    prefixes = tuple(map(str.strip, text.split(","))) if text else ()
    if any(not _WORD.fullmatch(prefix) for prefix in prefixes):
        raise ValueError(text)
    return prefixes


def _url(text: object) -> httpx.URL:
    try:
        url = httpx.URL(text if isinstance(text, str) else "")
    except httpx.InvalidURL:
        raise ValueError(text) from None
    usable = (
        url.scheme in ("http", "https")
        and _HOST.fullmatch(url.raw_host)
        and (url.port is None or url.port in _PORTS)
    )
    if not usable:
        raise ValueError(text)
    return url


def _object(text: str) -> dict[str, Any]:
    """Read a JSON object that says everything once."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) < len(pairs):
            raise ValueError(text)
        return dict(pairs)

    try:
        found = json.loads(text, object_pairs_hook=unique)
    except RecursionError:
        raise ValueError(text) from None
    if not isinstance(found, dict):
        raise ValueError(text)  # noqa: TRY004 - pydantic wants this one
    return found


def _headers(text: str) -> Mapping[str, str]:
    headers = _object(text)
    for name, value in headers.items():
        allowed = _HEADER_NAME.fullmatch(name) and name.lower() not in _FRAMING_HEADERS
        if not (allowed and isinstance(value, str) and _HEADER_VALUE.fullmatch(value)):
            raise ValueError(text)
    return headers


def _services(text: str) -> Mapping[str, httpx.URL]:
    services = {name: _url(url) for name, url in _object(text).items()}
    "".join(services).encode()  # a name that is no UTF-8 can go over no wire
    if GATEWAY in services or LIVENESS in services:
        raise ValueError(text)
    return services


_WORD: Final = re.compile(r"[!-+\--~]+")  # printable, no comma
_HOST: Final = re.compile(rb"[0-9A-Za-z._:-]+")  # httpx escapes what is no host
_PORTS: Final = range(1, 65536)
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_HEADER_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEADER_VALUE: Final = re.compile(r"([!-~]([\t -~]*[!-~])?)?")
_FRAMING_HEADERS: Final = ("connection", "content-length", "transfer-encoding")

_SECONDS = _Takes("seconds, from 0 to 3600")
_SOME_SECONDS = _Takes("seconds, from 0.01 to 3600")
Seconds = Annotated[float, Field(ge=0, le=3600), _SECONDS]
SomeSeconds = Annotated[float, Field(ge=0.01, le=3600), _SOME_SECONDS]


class Environment(BaseSettings):
    """What each variable takes and means. A field is the variable of its name, after `GHEALTH_`."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, frozen=True, extra="ignore", validate_default=False
    )

    listen: Annotated[
        tuple[Address, ...],
        NoDecode,
        PlainValidator(_addresses),
        _Takes("comma-separated host:port, such as [::]:25021"),
        Field(
            description="Where to serve gRPC: comma-separated `host:port`; `[::]` serves IPv4 too, "
            "and works on a node without IPv6; port 0 takes a free one"
        ),
    ] = (Address("::", 25021),)
    probe_url: Annotated[
        httpx.URL,
        PlainValidator(_url),
        _Takes("an http:// or https:// URL"),
        Field(
            description="The gateway's readiness endpoint; `localhost` reaches a listener on "
            "127.0.0.1 or on ::1 alone, whatever /etc/hosts says"
        ),
    ] = httpx.URL("http://localhost:15021/healthz/ready")
    probe_timeout: Annotated[
        SomeSeconds,
        Field(description="Seconds for one whole attempt, from the connection to the headers"),
    ] = 3.0
    probe_success_codes: Annotated[
        Matcher,
        NoDecode,
        PlainValidator(_http_codes),
        _Takes("codes from 200 to 499 as in an ALB's matcher: 200 or 200,204 or 200-299"),
        Field(
            description="The HTTP status codes that mean ready, from 200 to 499, in the syntax of "
            "an ALB's matcher: `200`, `200,204`, `200-299`"
        ),
    ] = _http_codes("200-299")
    probe_headers: Annotated[
        Mapping[str, str],
        NoDecode,
        PlainValidator(_headers),
        _Takes("a JSON object of header names and values, none of them about framing"),
        Field(description="Headers sent with each attempt: a JSON object; the values are secrets"),
    ] = {}
    services: Annotated[
        Mapping[str, httpx.URL],
        NoDecode,
        PlainValidator(_services),
        _Takes(f"a JSON object of service names (not empty, not {LIVENESS}) and http(s) URLs"),
        Field(
            description="Further services, each with a target of its own: a JSON object, service "
            f"name → URL; the empty name and `{LIVENESS}` are taken"
        ),
    ] = {}
    cache_ttl: Annotated[
        Seconds,
        Field(
            description="Seconds for which an answer, good or bad, serves every caller, counted "
            "from the start of its attempt; 0: each Check asks again (callers of the same moment "
            "still share one attempt)"
        ),
    ] = 1.0
    watch_interval: Annotated[
        SomeSeconds, Field(description="Seconds between looks while somebody watches")
    ] = 1.0
    answer: Annotated[
        str,
        PlainValidator(_policy),
        _Takes(" or ".join(POLICIES)),
        Field(
            description="What a caller gets that asks for a service that is not serving: `status` "
            "(`OK` + `NOT_SERVING`), `code` (`UNAVAILABLE`), or `auto`: the status for callers "
            "known to read it, the code for all others"
        ),
    ] = "auto"
    status_callers: Annotated[
        tuple[str, ...],
        NoDecode,
        PlainValidator(_prefixes),
        _Takes("comma-separated beginnings of words, such as grpc-,Envoy/HC"),
        Field(
            description="Who reads the status: a caller whose user agent has a word that begins "
            "with one of these; a list replaces the default"
        ),
    ] = ("grpc-", "Envoy/HC")
    reflection: Annotated[
        bool,
        _Takes("true or false"),
        Field(description="Whether to serve reflection (v1 and v1alpha), for grpcurl and the like"),
    ] = True
    drain_delay: Annotated[
        Seconds,
        Field(
            description='Seconds after SIGTERM during which it keeps answering "not serving"; '
            "SIGINT (Ctrl-C) skips them"
        ),
    ] = 5.0
    shutdown_grace: Annotated[Seconds, Field(description="Seconds for open RPCs after that")] = 1.0
    max_watches: Annotated[
        int,
        Field(ge=0, le=100_000),
        _Takes("a whole number from 0 to 100000"),
        Field(
            description="Most watches open at once; further ones get `RESOURCE_EXHAUSTED`, Check "
            "is never refused for it"
        ),
    ] = 100
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"],
        _Takes("debug, info, warning or error"),
        Field(description="The least of ghealth's own lines: `debug`, `info`, `warning`, `error`"),
    ] = "info"
    log_format: Annotated[
        Literal["text", "json"] | None,
        _Takes("text or json"),
        Field(description="`text` or `json`; unset: `text` on a terminal, else `json`"),
    ] = None
    metrics_listen: Annotated[
        Address | None,
        NoDecode,
        PlainValidator(Address.parse),
        _Takes("host:port, such as [::]:25022"),
        Field(
            description="Where to tell operators why, by HTTP: `host:port`; unset: nowhere; needs "
            "the extra `metrics`"
        ),
    ] = None

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003 - the names are pydantic-settings'
        init_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Let the environment be the only source."""
        return (env_settings,)


def load() -> Settings | Mistakes:
    """Read the settings from the environment and find every mistake in them at once."""
    lines = [line for name in sorted(os.environ) if (line := _misnamed(name) or _unmet(name))]
    try:
        environment = Environment()
    except ValidationError as error:
        mistaken = {str(found["loc"][0]) for found in error.errors(include_url=False)}
        lines += (_mistaken(field) for field in Environment.model_fields if field in mistaken)
    return Mistakes(tuple(lines)) if lines else _settings(environment)


def defaults() -> Settings:
    """Tell the settings that are in force where no variable is set."""
    return _settings(Environment.model_construct())


def _settings(environment: Environment) -> Settings:
    values = dict(environment)
    values["target"] = _target(values.pop("probe_url"))
    values["services"] = {name: _target(url) for name, url in environment.services.items()}
    return Settings(rows=_rows(environment), **values)


def target_of(text: str) -> Target:
    """Take a URL apart; a user and password in it become basic authentication (RFC 7617).

    Args:
        text: The URL.

    Raises:
        ValueError: If no probe can go there.
    """
    return _target(_url(text))


def _target(url: httpx.URL) -> Target:
    userinfo = f"{url.username}:{url.password}".encode()
    credentials = base64.b64encode(userinfo).decode() if url.userinfo else None
    return Target(
        host=url.raw_host.decode("ascii"),
        port=url.port or _DEFAULT_PORTS[url.scheme],
        tls=url.scheme == "https",
        authority=url.netloc.decode("ascii"),
        path=url.raw_path.decode("ascii"),
        credentials=credentials,
    )


def _rows(environment: Environment) -> tuple[Row, ...]:
    """Show every variable, in the order of the documentation, secrets masked."""
    return tuple(
        Row(
            variable=PREFIX + name.upper(),
            value=_shown(getattr(environment, name)),
            default=_shown(field.default),
            meaning=field.description or "",
        )
        for name, field in Environment.model_fields.items()
    )


def _misnamed(name: str) -> str | None:
    """Say what is wrong with the name of a variable, if anything is."""
    known = [field.upper() for field in Environment.model_fields]
    variable = name.upper()
    if not variable.startswith(PREFIX) or variable.removeprefix(PREFIX) in known:
        return None
    if variable == "GHEALTH_PORT" and os.environ[name].strip().isdigit():
        return f"{name} is no setting: the port belongs into GHEALTH_LISTEN, such as [::]:25021"
    if _SERVICE_LINK.fullmatch(variable):
        return None
    nearest = difflib.get_close_matches(variable.removeprefix(PREFIX), known, n=1)
    advice = (
        f"did you mean {PREFIX}{nearest[0]}?" if nearest else "'ghealth settings' lists them all"
    )
    return f"{name} is no setting: {advice}"


def _unmet(name: str) -> str | None:
    """Say what a variable needs that is not installed, if it does."""
    if name.upper() != PREFIX + "METRICS_LISTEN" or importlib.util.find_spec(_EXTRA):
        return None
    return f"{name} needs packages that are not installed: pip install 'ghealth[metrics]'"


def _mistaken(field: str) -> str:
    """Say what is wrong with the value of a variable."""
    variable = PREFIX + field.upper()
    held = next(value for name, value in os.environ.items() if name.upper() == variable)
    takes = next(
        item for item in Environment.model_fields[field].metadata if isinstance(item, _Takes)
    )
    shown = _MASKS.get(field, str)(held)
    if len(shown) > _SHOWN_LENGTH:
        shown = shown[:_SHOWN_LENGTH] + "…"
    return f"{variable} holds {shown!r}, but takes {takes.text}"


def _masked_url(held: str) -> str:
    """Mask all of a text that could be a secret if it were a URL, which it is not."""
    before, mark, _ = held.partition("?")
    _, at, after = before.rpartition("@")
    return f"{MASK if at else ''}{at}{after}{mark}{MASK if mark else ''}"


_MASKS: Final[Mapping[str, Callable[[str], str]]] = {
    "probe_url": _masked_url,
    "probe_headers": lambda _: MASK,
    "services": lambda held: MASK if any(sign in held for sign in "@?\\") else held,
}
"""How the value of a variable is shown that is a mistake."""


def _shown(value: object) -> str:
    """Render a value in its variable's own syntax, secrets masked."""
    match value:
        case None:
            return ""
        case bool():
            return str(value).lower()
        case float():
            return f"{value:g}"
        case tuple():
            return ",".join(map(str, value))
        case httpx.URL():
            return _shown_url(value)
        case dict():
            shown = {k: _shown(v) if isinstance(v, httpx.URL) else MASK for k, v in value.items()}
            return json.dumps(shown, ensure_ascii=False)
        case _:
            return str(value)


def _shown_url(url: httpx.URL) -> str:
    """Render a URL, user info and query masked; str() of it would mask the password alone."""
    path, mark, query = url.raw_path.decode().partition("?")
    userinfo = f"{MASK}@" if url.userinfo else ""
    return f"{url.scheme}://{userinfo}{url.netloc.decode()}{path}{mark}{MASK if query else ''}"

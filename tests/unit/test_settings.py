import json
import re
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import ValidationError

from ghealth.address import Address
from ghealth.matcher import Matcher
from ghealth.probe import _request
from ghealth.settings import MASK, Mistakes, Settings, Target, load


def loaded(monkeypatch: pytest.MonkeyPatch, **variables: str) -> Settings | Mistakes:
    """Load the settings of an environment with these variables alone."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return load()


def settings(monkeypatch: pytest.MonkeyPatch, **variables: str) -> Settings:
    """Load settings; the variables' names have no prefix."""
    found = loaded(monkeypatch, **{f"GHEALTH_{name}": value for name, value in variables.items()})
    assert isinstance(found, Settings), found
    return found


def mistakes(monkeypatch: pytest.MonkeyPatch, **variables: str) -> tuple[str, ...]:
    found = loaded(monkeypatch, **variables)
    assert isinstance(found, Mistakes), found
    return found.lines


def changed(found: Settings) -> dict[str, str]:
    return {row.variable: row.value for row in found.rows() if row.changed}


DEFAULTS = {
    "GHEALTH_LISTEN": "[::]:25021",
    "GHEALTH_TLS_LISTEN": "off",
    "GHEALTH_TLS_CERT_FILE": "",
    "GHEALTH_TLS_KEY_FILE": "",
    "GHEALTH_TLS_CLIENT_CA_FILE": "",
    "GHEALTH_PROBE_URL": "http://localhost:15021/healthz/ready",
    "GHEALTH_PROBE_TIMEOUT": "3s",
    "GHEALTH_PROBE_SUCCESS_CODES": "200-299",
    "GHEALTH_PROBE_HEADERS": "{}",
    "GHEALTH_SERVICES": "{}",
    "GHEALTH_CACHE_TTL": "1s",
    "GHEALTH_WATCH_INTERVAL": "1s",
    "GHEALTH_ANSWER": "auto",
    "GHEALTH_STATUS_CALLERS": "grpc-,Envoy/HC",
    "GHEALTH_REFLECTION": "true",
    "GHEALTH_DRAIN_DELAY": "5s",
    "GHEALTH_SHUTDOWN_GRACE": "1s",
    "GHEALTH_MAX_WATCHES": "100",
    "GHEALTH_LOG_LEVEL": "info",
    "GHEALTH_LOG_FORMAT": "",
    "GHEALTH_ADMIN_LISTEN": "127.0.0.1:25022",
}


def test_the_defaults_are_the_contracts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a variable, everything is as documented."""
    found = settings(monkeypatch)
    assert {row.variable: row.value for row in found.rows()} == DEFAULTS
    assert {row.variable: row.default for row in found.rows()} == DEFAULTS
    assert changed(found) == {}
    assert all(row.meaning for row in found.rows())


URLS = (httpx.URL("http://a/"), httpx.URL("http://b/"))

VALUES: dict[str, tuple[str, Any]] = {
    "LISTEN": (
        "127.0.0.1:0, [::1]:25021,localhost:80",
        (Address("127.0.0.1", 0), Address("::1", 25021), Address("localhost", 80)),
    ),
    "PROBE_URL": ("https://gw:15021/ready", (httpx.URL("https://gw:15021/ready"),)),
    "PROBE_TIMEOUT": ("500ms", 0.5),
    "PROBE_SUCCESS_CODES": ("200,204", Matcher(((200, 200), (204, 204)))),
    "PROBE_HEADERS": ('{"X-Key": "s3cret", "Empty": ""}', {"X-Key": "s3cret", "Empty": ""}),
    "SERVICES": (
        '{"a.B": "http://b:1/", "c": {"url": "http://c/", "headers": {"X-Key": "s3cret"}}}',
        {
            "a.B": Target(httpx.URL("http://b:1/")),
            "c": Target(httpx.URL("http://c/"), {"X-Key": "s3cret"}),
        },
    ),
    "CACHE_TTL": ("0", 0.0),
    "WATCH_INTERVAL": ("0.01", 0.01),
    "ANSWER": ("code", "code"),
    "STATUS_CALLERS": ("grpc-, Probe/1", ("grpc-", "Probe/1")),
    "REFLECTION": ("false", False),
    "DRAIN_DELAY": ("0s", 0.0),
    "SHUTDOWN_GRACE": ("1h", 3600.0),
    "MAX_WATCHES": ("0", 0),
    "LOG_LEVEL": ("debug", "debug"),
    "LOG_FORMAT": ("json", "json"),
    "ADMIN_LISTEN": ("[::]:25022", (Address("::", 25022),)),
}

TLS = {"TLS_LISTEN", "TLS_CERT_FILE", "TLS_KEY_FILE", "TLS_CLIENT_CA_FILE"}
"""They are set together, in separate tests."""


def test_every_variable_has_a_test_of_its_own() -> None:
    """A new variable is not forgotten here."""
    assert {name.upper() for name in Settings.model_fields} == set(VALUES) | TLS


@pytest.mark.parametrize("name", VALUES)
def test_a_variable_sets_its_field(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Each variable is read, in any case and with white space around it, and shows as changed."""
    text, value = VALUES[name]
    for variable in (f"GHEALTH_{name}", f"ghealth_{name.lower()}", f"Ghealth_{name.title()}"):
        with monkeypatch.context() as patch:
            found = loaded(patch, **{variable: f" \t{text}\r\n"})
            assert isinstance(found, Settings)
            assert getattr(found, name.lower()) == value
            assert list(changed(found)) == [f"GHEALTH_{name}"]


@pytest.mark.parametrize("blank", ["", " \t\r\n"])
@pytest.mark.parametrize("name", [*VALUES, *sorted(TLS)])
def test_a_blank_value_is_unset(monkeypatch: pytest.MonkeyPatch, name: str, blank: str) -> None:
    """Every variable has its default if it is empty or white space."""
    found = settings(monkeypatch, **{name: blank})
    assert {row.variable: row.value for row in found.rows()} == DEFAULTS
    assert found.model_fields_set == set()


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("ANSWER", "Auto", "auto"),
        ("ANSWER", "CODE", "code"),
        ("LOG_LEVEL", "INFO", "info"),
        ("LOG_LEVEL", "Warning", "warning"),
        ("LOG_LEVEL", "WARN", "warning"),
        ("LOG_FORMAT", "JSON", "json"),
        ("REFLECTION", "True", True),
        ("REFLECTION", "FALSE", False),
        ("REFLECTION", "1", True),
        ("REFLECTION", "0", False),
        ("REFLECTION", "Yes", True),
        ("REFLECTION", "no", False),
        ("REFLECTION", "ON", True),
        ("REFLECTION", "Off", False),
        ("ADMIN_LISTEN", "OFF", ()),
        ("TLS_LISTEN", "Off", ()),
    ],
)
def test_words_are_case_insensitive(
    monkeypatch: pytest.MonkeyPatch, name: str, text: str, value: object
) -> None:
    """A word means the same in any case."""
    assert getattr(settings(monkeypatch, **{name: text}), name.lower()) == value


def test_the_same_name_twice_is_a_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every further spelling of a name is a line, even with the same or no value."""
    assert mistakes(
        monkeypatch, GHEALTH_CACHE_TTL="1s", ghealth_cache_ttl="1s", Ghealth_Cache_Ttl=""
    ) == tuple(
        f"{name}: GHEALTH_CACHE_TTL is set twice, in different case; expected one of them"
        for name in ("Ghealth_Cache_Ttl", "ghealth_cache_ttl")
    )


DURATIONS = ["PROBE_TIMEOUT", "CACHE_TTL", "WATCH_INTERVAL", "DRAIN_DELAY", "SHUTDOWN_GRACE"]


@pytest.mark.parametrize("name", DURATIONS)
@pytest.mark.parametrize("text", ["1m30s", "90", "90.0s", "90000ms"])
def test_every_duration_is_written_alike(
    monkeypatch: pytest.MonkeyPatch, name: str, text: str
) -> None:
    """All variables with a duration have the same syntax, and show it."""
    found = settings(monkeypatch, **{name: text})
    assert getattr(found, name.lower()) == 90
    assert changed(found) == {f"GHEALTH_{name}": "90s"}


def test_settings_are_frozen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing changes a setting after it was read."""
    with pytest.raises(ValidationError, match="frozen"):
        settings(monkeypatch).cache_ttl = 0


def test_settings_can_be_made_by_a_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """Arguments precede the environment, which fills the rest."""
    monkeypatch.setenv("GHEALTH_CACHE_TTL", "x")
    monkeypatch.setenv("GHEALTH_DRAIN_DELAY", "7s")
    for made in (Settings(cache_ttl=2), Settings.model_validate({"cache_ttl": "2s"})):
        assert (made.cache_ttl, made.drain_delay) == (2, 7)


@pytest.mark.parametrize(
    ("name", "value", "field"),
    [
        ("cache_ttl", 2, 2.0),
        ("cache_ttl", timedelta(milliseconds=1500), 1.5),
        ("listen", "127.0.0.1:0", (Address("127.0.0.1", 0),)),
        (
            "listen",
            ["127.0.0.1:0", Address("::1", 1)],
            (Address("127.0.0.1", 0), Address("::1", 1)),
        ),
        ("admin_listen", (), ()),
        ("probe_url", [httpx.URL("http://a/"), "http://b/"], URLS),
        ("probe_success_codes", Matcher(((200, 204),)), Matcher(((200, 204),))),
        ("probe_headers", {"a": "b"}, {"a": "b"}),
        ("services", {"a": URLS[0]}, {"a": Target(URLS[0])}),
        ("services", {"a": Target(URLS[0], {"b": "c"})}, {"a": Target(URLS[0], {"b": "c"})}),
        ("status_callers", ("a", "b"), ("a", "b")),
        ("max_watches", 5, 5),
        ("reflection", False, False),
        ("log_format", None, None),
        ("tls_cert_file", None, None),
    ],
)
def test_values_from_python_are_right(name: str, value: object, field: object) -> None:
    """Values of Python's types are as right as texts."""
    found = getattr(Settings.model_validate({name: value}), name)
    assert (found, type(found)) == (field, type(field))


NOT_SECONDS: list[object] = [
    -1,
    3601,
    float("nan"),
    True,
    timedelta(hours=2),
    httpx.URL("http://a"),
]
DEEP: list[object] = []
for _ in range(5000):
    DEEP = [DEEP]
WRONG: dict[str, list[object]] = {
    "listen": [5, {}, [Address("gw", 1)], [Address(5, "x")]],  # type: ignore[arg-type]
    "tls_listen": [5],
    "admin_listen": [5, Address("::1", 1), ["127.0.0.1:1", "127.0.0.1:2"]],
    "tls_cert_file": [5, "\0"],
    "tls_key_file": [{}],
    "tls_client_ca_file": [[]],
    "probe_url": [5, {}, (), ["x"], httpx.URL("http://a/")],
    "probe_timeout": [*NOT_SECONDS, 0],
    "probe_success_codes": [200, Matcher(((1, 2),)), Matcher(5)],  # type: ignore[arg-type]
    "probe_headers": [5, {"a": 1}, {1: "a"}, {"a": "s3cret\n"}],
    "services": [5, ["a"], {"a": 5}, {"a": Target("s3cret")}, {"a\ud800": "http://b/"}],  # type: ignore[arg-type]
    "cache_ttl": NOT_SECONDS,
    "watch_interval": [*NOT_SECONDS, timedelta(0)],
    "answer": [5, DEEP],
    "status_callers": [5, ["a b"]],
    "reflection": ["", 5],
    "drain_delay": NOT_SECONDS,
    "shutdown_grace": NOT_SECONDS,
    "max_watches": [-5, 2.5, True, timedelta(1)],
    "log_level": [5],
    "log_format": [5],
}


@pytest.mark.parametrize("name", WRONG)
def test_other_values_from_python_are_validation_errors(name: str) -> None:
    """Each value is right or a ValidationError that names it; None is right as a default only."""
    is_optional = Settings.model_fields[name].default is None
    for value in WRONG[name] + ([] if is_optional else [None]):
        with pytest.raises(ValidationError) as raised:
            Settings.model_validate({name: value})
        (error,) = raised.value.errors()
        assert error["loc"] == (name,)
        assert error["msg"].startswith("invalid value ")
        assert "; expected " in error["msg"]
        assert "s3cret" not in f"{raised.value}{raised.value.errors()}"


def test_every_setting_has_wrong_values() -> None:
    """A new setting is not forgotten here."""
    assert WRONG.keys() == Settings.model_fields.keys()


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"drain_dely": 1}, "unknown setting; did you mean drain_delay?"),
        ({"port": 1}, "unknown setting; 'ghealth settings' lists all settings"),
        ({"listen": ()}, "off; expected an address, or GHEALTH_TLS_LISTEN too"),
        ({"\ud800": 1}, "Input should be a valid string"),
        (5, "Input should be a valid dictionary"),
    ],
)
def test_mistakes_of_a_program_are_explained(values: Any, text: str) -> None:
    """An unknown argument has the nearest known one, as in the environment."""
    with pytest.raises(ValidationError) as raised:
        Settings.model_validate(values)
    (error,) = raised.value.errors()
    assert error["msg"].startswith(text)


@pytest.mark.parametrize(
    ("url", "host", "port", "path", "authorization"),
    [
        ("http://localhost/", "localhost", None, b"/", None),
        ("https://gw", "gw", None, b"/", None),
        ("http://gw:80/a?b=1#c", "gw", None, b"/a?b=1", None),
        ("http://[::1]:15021/", "[::1]:15021", 15021, b"/", None),
        ("http://[2001:DB8::1]/", "[2001:DB8::1]", None, b"/", None),
        ("http://GW.example./", "gw.example.", None, b"/", None),
        ("http://bücher.test/ä", "xn--bcher-kva.test", None, b"/%C3%A4", None),
        ("http://me:p%40ss@gw/", "gw", None, b"/", "Basic bWU6cEBzcw=="),
        ("http://me@gw/", "gw", None, b"/", "Basic bWU6"),
    ],
)
def test_a_url_is_taken_apart(
    monkeypatch: pytest.MonkeyPatch,
    url: str,
    host: str,
    port: int | None,
    path: bytes,
    authorization: str | None,
) -> None:
    """Every form of a URL becomes a request with the right host, path and authorization."""
    (found,) = settings(monkeypatch, PROBE_URL=url).probe_url
    assert found.port == port
    request = _request(found, {})
    assert request.url.raw_path == path
    assert request.headers["Host"] == host
    assert request.headers.get("Authorization") == authorization


def test_several_urls_are_separated_by_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    """White space around a comma is ignored; other characters belong to a URL."""
    urls = ("http://a/x%2Cy;z|b?z=1;3|4&n=1:2/", "HTTPS://b:1/", "http://c/")
    for text in (",".join(urls), " , ".join(urls), ",\n".join(urls)):
        assert settings(monkeypatch, PROBE_URL=text).probe_url == tuple(map(httpx.URL, urls))


SEVERAL = "several URLs in one, white space, or a comma; in a URL, write %2C"
NO_SCHEME = "no http:// or https:// before or after a comma; in a URL, write %2C"


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        *(
            (f"http://a/{between}", SEVERAL)
            for between in (
                " http://b/",
                "\nhttp://b/",
                ";HTTP://b/",
                "|https://b/",
                " ; http://b/",
            )
        ),
        *(
            (f"http://a/x,{rest}", NO_SCHEME)
            for rest in (
                "",
                ",http://b/",
                " ,http://b/",
                "y",
                "localhost/ready",
                "localhost:15000",
                "127.0.0.1:15000/ready",
                "[::1]:15000/ready",
                "gateway-b.ns.svc/ready",
                "gw:80,http://b/",
            )
        ),
        (",http://a/", NO_SCHEME),
    ],
)
def test_other_separators_of_urls_are_mistakes(
    monkeypatch: pytest.MonkeyPatch, text: str, hint: str
) -> None:
    """Folded YAML lists make them, and all but the first URL would never be probed."""
    (line,) = mistakes(monkeypatch, GHEALTH_PROBE_URL=text)
    assert line.endswith(f"expected comma-separated http:// or https:// URLs ({hint})")


@pytest.mark.parametrize("url", ["http://b/,http://c/", "http://b/,c/", "http://b/ http://c/"])
def test_a_service_has_one_url(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """With two of them, the second would never be probed."""
    (line,) = mistakes(monkeypatch, GHEALTH_SERVICES=json.dumps({"a": url}))
    assert line.endswith(f"(a: url: {SEVERAL})")


MISTAKES = {
    "GHEALTH_LISTEN": [
        "25021",
        "::1:25021",
        "[::]:65536",
        "[::1]:1,",
        "[gw]:1",
        ":-1",
        ":1,off",
        "gw:1",
        "0:1",
    ],
    "GHEALTH_TLS_LISTEN": ["25021", "[::]:65536"],
    "GHEALTH_TLS_CERT_FILE": ["/nowhere/tls.crt"],
    "GHEALTH_TLS_KEY_FILE": ["/"],
    "GHEALTH_TLS_CLIENT_CA_FILE": ["/nowhere/ca.crt"],
    "GHEALTH_ADMIN_LISTEN": ["25022", ":1,:2", "[::]:65536", "localhost.:1"],
    "GHEALTH_PROBE_URL": [
        "gw:15021",
        "ftp://gw/",
        "http://",
        "http://gw:99999/",
        "http://g:0",
        "http://g..w/",
        "http://xn--/",
        f"http://{'g' * 64}/",
        "http://[gw/",
        "http://g w/",
        "http://\x01/",
        "http://a\udcff/",
        "http://a/,ftp://b/",
    ],
    "GHEALTH_PROBE_TIMEOUT": ["0", "9ms", "-1", "3 s", "nan", "inf", "3601", "1h1s"],
    "GHEALTH_PROBE_SUCCESS_CODES": ["ok", "503", "0-999", "100-199"],
    "GHEALTH_SERVICES": [
        "x",
        "[]",
        '{"": "http://a/"}',
        '{"liveness": "http://a/"}',
        '{"a": 1}',
        '{"a": "b"}',
        '{"a": "http://b/", "a": "http://c/"}',
        "[" * 100_000,
        '{"a\\ud800": "http://b/"}',
        '{"a": {"headers": {}}}',
        '{"a": {"url": "http://b/", "heders": {}}}',
        '{"a": {"url": "http://b/", "headers": []}}',
        '{"a": {"url": "http://b/", "headers": {"Host": "a", "host": "b"}}}',
        '{"a": ' + "9" * 5000 + "}",
    ],
    "GHEALTH_CACHE_TTL": ["-0.1", "nan", "one"],
    "GHEALTH_WATCH_INTERVAL": ["0"],
    "GHEALTH_ANSWER": ["automatic", "both"],
    "GHEALTH_STATUS_CALLERS": [",", "grpc-,", "a b"],
    "GHEALTH_REFLECTION": ["maybe", "2"],
    "GHEALTH_DRAIN_DELAY": ["-1"],
    "GHEALTH_SHUTDOWN_GRACE": ["x"],
    "GHEALTH_MAX_WATCHES": ["-1", "1.5", "100001", "9" * 5000],
    "GHEALTH_LOG_LEVEL": ["loud"],
    "GHEALTH_LOG_FORMAT": ["xml"],
}


@pytest.mark.parametrize(
    ("variable", "text"), [(name, text) for name, texts in MISTAKES.items() for text in texts]
)
def test_a_mistake_is_one_line(monkeypatch: pytest.MonkeyPatch, variable: str, text: str) -> None:
    """An invalid value is one line: the variable, its value and what is expected."""
    (line,) = mistakes(monkeypatch, **{variable: text})
    shown = repr(MASK) if variable == "GHEALTH_SERVICES" else repr(text[:20])[:-1]
    assert line.startswith(f"{variable}: invalid value {shown}")
    assert "; expected " in line
    assert "\n" not in line
    assert line.encode()
    assert not re.search("invalid literal|Errno|Error", line)  # Python's own words
    assert len(line) < 300


NOT_HEADERS = [
    "s3cret",
    '"s3cret"',
    '{"a b": "s3cret"}',
    '{"a": "s3cret\\n"}',
    '{"a": " s3cret"}',
    '{"a": ["s3cret"]}',
    '{"a": "s3cret", "a": "s3cret"}',
    '{"a": "s3crét"}',
    '{"Host": "s3cret", "host": "s3cret"}',
    '{"": "s3cret"}',
    "[" * 100_000 + "s3cret",
]


@pytest.mark.parametrize("text", NOT_HEADERS)
def test_a_mistake_in_headers_shows_no_secrets(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """Other texts than an object of headers are refused, for services too, without secrets."""
    for variable, value in [
        ("GHEALTH_PROBE_HEADERS", text),
        ("GHEALTH_SERVICES", f'{{"a": {{"url": "http://b/", "headers": {text}}}}}'),
    ]:
        with monkeypatch.context() as patch:
            (line,) = mistakes(patch, **{variable: value})
        assert line.startswith(f"{variable}: invalid value '***'; expected a JSON object")
        assert "s3cr" not in line


@pytest.mark.parametrize(
    "name",
    [
        "Connection",
        "upgrade",
        "Content-Length",
        "Transfer-Encoding",
        "TE",
        "Trailer",
        "Expect",
        "Keep-Alive",
        "Proxy-Connection",
        "HTTP2-Settings",
    ],
)
def test_headers_about_the_connection_are_refused(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The HTTP library decides them: `Upgrade` has hung the whole process."""
    (line,) = mistakes(monkeypatch, GHEALTH_PROBE_HEADERS=json.dumps({name: "h2c"}))
    assert line.endswith(f"(the header {name} cannot be set)")


def test_a_mistake_in_a_service_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The value is a secret, the service's name is not."""
    (line,) = mistakes(monkeypatch, GHEALTH_SERVICES='{"a": "http://b/", "c": "s3cret"}')
    assert line.endswith(f"(c: url: {NO_SCHEME})")


def test_a_long_value_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line stays a line, whatever the variable holds."""
    (line,) = mistakes(monkeypatch, GHEALTH_CACHE_TTL="x" * 1000 + "\n")
    assert len(line) < 200


def test_all_mistakes_are_reported_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A person corrects everything in one round."""
    lines = mistakes(
        monkeypatch,
        GHEALTH_CACHE_TTL="x",
        GHEALTH_PROBE_TIMEOUT="0",
        GHEALTH_PROBE_TIMOUT="3",
        GHEALTH_PROBE_HEADERS="[",
        GHEALTH_DRAIN_DELAY="1s",
        ghealth_drain_delay="1s",
        GHEALTH_LISTEN="[::]:1,[::]:1",
        GHEALTH_TLS_KEY_FILE="/dev/null",
    )
    assert [line.split()[0].rstrip(":") for line in lines] == [
        "GHEALTH_PROBE_TIMEOUT",
        "GHEALTH_PROBE_HEADERS",
        "GHEALTH_CACHE_TTL",
        "GHEALTH_PROBE_TIMOUT",
        "ghealth_drain_delay",
        "GHEALTH_LISTEN",
        "GHEALTH_TLS_KEY_FILE",
    ]


def test_a_mistake_brings_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """What goes together with an invalid value is not a mistake because of that."""
    lines = mistakes(
        monkeypatch,
        GHEALTH_LISTEN="off",
        GHEALTH_TLS_LISTEN="x",
        GHEALTH_TLS_CERT_FILE="/dev/null",
        GHEALTH_TLS_KEY_FILE="/gone",
    )
    assert [line.split()[0] for line in lines] == ["GHEALTH_TLS_LISTEN:", "GHEALTH_TLS_KEY_FILE:"]


def test_the_default_in_place_of_an_invalid_value_is_no_mistake(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The address of a LISTEN that is invalid is not in use."""
    lines = mistakes(monkeypatch, GHEALTH_LISTEN="x", GHEALTH_ADMIN_LISTEN="[::]:25021")
    assert [line.split()[0] for line in lines] == ["GHEALTH_LISTEN:"]


def test_an_unknown_name_is_a_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    """An unknown name is refused, with the nearest known one if there is one."""
    lines = mistakes(
        monkeypatch,
        GHEALTH_PROB_URL="http://s3cret/",
        GHEALTH_QUUX="1",
        ghealth_lisen="1",
        **{"GHEALTH_\udcff": ""},
    )
    assert lines == (
        "GHEALTH_PROB_URL: unknown setting; did you mean GHEALTH_PROBE_URL?",
        "GHEALTH_QUUX: unknown setting; 'ghealth settings' lists all settings",
        "GHEALTH_\\udcff: unknown setting; 'ghealth settings' lists all settings",
        "ghealth_lisen: unknown setting; did you mean GHEALTH_LISTEN?",
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("GHEALTH_PORT", "tcp://10.0.0.1:25021"),
        ("GHEALTH_PORT_25021_TCP", "tcp://10.0.0.1:25021"),
        ("GHEALTH_PORT_25021_TCP_ADDR", "10.0.0.1"),
        ("GHEALTH_SERVICE_HOST", "10.0.0.1"),
        ("GHEALTH_SERVICE_PORT", "25021"),
        ("GHEALTH_SERVICE_PORT_GRPC", "25021"),
        ("GHEALTH_SERVICE_PORT_GRPC_PLAIN", "25021"),
        ("GHEALTH_PORT_53_UDP_PORT", "53"),
        ("GHEALTH_PORT_5000_SCTP_PROTO", "sctp"),
        ("GHEALTH_METRICS_SERVICE_HOST", "10.0.0.1"),
        ("GHEALTH_METRICS_PORT", "tcp://10.0.0.1:9090"),
        ("GHEALTH_METRICS_PORT_9090_TCP_ADDR", "10.0.0.1"),
    ],
)
def test_service_links_are_ignored(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    """The variables that Kubernetes injects for a Service ghealth or ghealth-x are no mistakes."""
    assert isinstance(loaded(monkeypatch, **{name: value}), Settings)


def test_a_plain_port_points_to_listen(monkeypatch: pytest.MonkeyPatch) -> None:
    """GHEALTH_PORT with a number was written by a person."""
    assert mistakes(monkeypatch, GHEALTH_PORT="8080") == (
        "GHEALTH_PORT: unknown setting; expected the port in GHEALTH_LISTEN, such as [::]:25021",
    )


def test_other_programs_variables_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only GHEALTH_* is ours: a .env file's or another program's names are not."""
    assert isinstance(loaded(monkeypatch, LISTEN="x", GHEALTHY="1"), Settings)


SECRET_URL = "http://me:s3cret@gw/ready?token=s3cret"


def test_secrets_are_masked_wherever_settings_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """Header values, user info and queries of URLs show as ***."""
    found = settings(
        monkeypatch,
        PROBE_URL=f"{SECRET_URL},{SECRET_URL}#s3cret",
        SERVICES=json.dumps(
            {"a": SECRET_URL, "b": {"url": SECRET_URL, "headers": {"X-Key": "s3cret"}}}
        ),
        PROBE_HEADERS='{"Authorization": "s3cret"}',
    )
    shown = "http://***@gw/ready?***"
    assert changed(found) == {
        "GHEALTH_PROBE_URL": f"{shown},{shown}",
        "GHEALTH_SERVICES": f'{{"a": "{shown}", "b": {{"url": "{shown}", '
        '"headers": {"X-Key": "***"}}}',
        "GHEALTH_PROBE_HEADERS": '{"Authorization": "***"}',
    }


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("PROBE_URL", "htp://me:s3cret@gw/ready?token=s3cret"),
        ("PROBE_URL", "http://me:pa/s3cret@gw/"),
        ("PROBE_URL", "http://me:pa s3cret@gw:x/"),
        ("PROBE_URL", "http://me@s3cret@gw:x/"),
        ("PROBE_URL", "me:s3cret@gw/ready"),
        ("PROBE_URL", "http:/me:s3cret@gw/ready"),
        ("PROBE_URL", "http://gw:x/?token=a s3cret"),
        ("PROBE_URL", "http://gw:x/?token=a@s3cret"),
        ("PROBE_URL", "http://me:s3cret?s3cret@gw:99999/"),
        ("PROBE_URL", "http://gw/?token=s3cret,http://me:s3cret@gw:x/"),
        ("SERVICES", '{"liveness": "http://me:s3cret@gw/"}'),
        ("SERVICES", '{"liveness": "http:\\/\\/me:s3cret@gw"}'),
        ("SERVICES", '{"liveness": "http://me:s3\\"s3cret@gw"}'),
        ("SERVICES", '{"liveness": "http://gw/?s3cret"}'),
        ("SERVICES", '{"a": {"url": "http://gw/", "Header": {"X-Key": "s3cret"}}}'),
        ("SERVICES", '{"Authorization": "s3cret"}'),
        ("SERVICES", "s3cret"),
    ],
)
def test_secrets_are_masked_in_mistakes_too(
    monkeypatch: pytest.MonkeyPatch, variable: str, text: str
) -> None:
    """An invalid URL may still hold a password, wherever a typing mistake put it."""
    (line,) = mistakes(monkeypatch, **{f"GHEALTH_{variable}": text})
    assert "s3cret" not in line
    assert MASK in line


def test_secrets_are_masked_in_exceptions(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that reads the settings itself does not show secrets either."""
    monkeypatch.setenv("GHEALTH_PROBE_HEADERS", '{"a": "s3cret"}')
    assert "s3cret" not in repr(Settings())
    monkeypatch.setenv("GHEALTH_CACHE_TTL", "x")
    with pytest.raises(ValidationError) as raised:
        Settings()
    assert "s3cret" not in f"{raised.value}{raised.value.errors()}{raised.value.json()}"


def test_off_needs_a_port_with_tls(monkeypatch: pytest.MonkeyPatch) -> None:
    """`off` is for those who serve with TLS only."""
    assert mistakes(monkeypatch, GHEALTH_LISTEN="off") == (
        "GHEALTH_LISTEN: off; expected an address, or GHEALTH_TLS_LISTEN too",
    )


@pytest.mark.parametrize("name", ["CERT", "KEY", "CLIENT_CA"])
def test_a_tls_file_needs_tls_listen(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A certificate that would serve nothing is a mistake."""
    variable = f"GHEALTH_TLS_{name}_FILE"
    assert mistakes(monkeypatch, **{variable: "/dev/null"}) == (
        f"{variable}: set without GHEALTH_TLS_LISTEN; expected both",
    )


def test_a_file_that_cannot_be_read_is_a_mistake(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The cause is the system's."""
    for path, why in [(tmp_path, "Is a directory"), (tmp_path / "x", "No such file or directory")]:
        cert, key = mistakes(
            monkeypatch, GHEALTH_TLS_CERT_FILE=str(path), GHEALTH_TLS_LISTEN="[::1]:1"
        )
        assert cert.endswith(f"; expected a file that can be read ({why})")
        assert key.startswith("GHEALTH_TLS_KEY_FILE: unset; ")


def test_what_is_shown_is_utf_8(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A path may have other bytes; the status page could not show them."""
    path = tmp_path / "\udcff"
    path.touch()
    files = {"TLS_CERT_FILE": str(path), "TLS_KEY_FILE": str(path)}
    found = settings(monkeypatch, TLS_LISTEN="[::1]:0", **files)
    assert found.tls_cert_file == path
    assert changed(found)["GHEALTH_TLS_CERT_FILE"] == f"{tmp_path}/\\udcff"


def test_tls_listen_needs_a_certificate_and_its_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each file that is missing has its line."""
    assert mistakes(monkeypatch, GHEALTH_TLS_LISTEN="[::]:25023") == (
        "GHEALTH_TLS_CERT_FILE: unset; expected a PEM file, since GHEALTH_TLS_LISTEN is set",
        "GHEALTH_TLS_KEY_FILE: unset; expected a PEM file, since GHEALTH_TLS_LISTEN is set",
    )


def test_an_address_that_occurs_twice_is_a_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second one would find its port taken; a free port can be had twice."""
    lines = mistakes(
        monkeypatch,
        GHEALTH_LISTEN="[::1]:1,127.0.0.1:1",
        GHEALTH_TLS_LISTEN="127.0.0.1:1",
        GHEALTH_ADMIN_LISTEN="[0::1]:1",
    )
    assert [line for line in lines if "twice" in line] == [
        "GHEALTH_TLS_LISTEN: 127.0.0.1:1 occurs twice; expected different addresses",
        "GHEALTH_ADMIN_LISTEN: [::1]:1 occurs twice; expected different addresses",
    ]
    monkeypatch.delenv("GHEALTH_TLS_LISTEN")
    settings(monkeypatch, LISTEN="[::1]:0,[::1]:0", ADMIN_LISTEN="[::1]:0")


def test_the_default_admin_port_may_be_taken_by_another_address(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It gives way: only one that was set is a mistake."""
    settings(monkeypatch, LISTEN="127.0.0.1:25022")

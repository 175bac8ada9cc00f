import json
import os
import re
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch

import httpx
import pytest
from pydantic import ValidationError

from ghealth.address import Address
from ghealth.matcher import Matcher
from ghealth.settings import MASK, Mistakes, Settings, Target, load


def loaded(**variables: str) -> Settings | Mistakes:
    """Load the settings of an environment with these variables alone."""
    with patch.dict(os.environ, variables):
        return load()


def settings(**values: str) -> Settings:
    """Load settings; the variables' names have no prefix, here and below."""
    found = loaded(**{f"GHEALTH_{name}": value for name, value in values.items()})
    assert isinstance(found, Settings), found
    return found


def mistakes(**values: str) -> tuple[str, ...]:
    found = loaded(**{f"GHEALTH_{name}": value for name, value in values.items()})
    assert isinstance(found, Mistakes), found
    return found.lines


def mistake(**values: str) -> str:
    """Return the only line about the mistakes in these variables."""
    (line,) = mistakes(**values)
    return line


def parsed(variables: str) -> dict[str, str]:
    """Parse variables that are written as for a shell."""
    return dict(one.split("=", 1) for one in variables.split())


def changed(found: Settings) -> dict[str, str]:
    return {row.variable: row.value for row in found.rows() if row.changed}


def refusal(values: Any) -> ValidationError:
    """Return the error of a program that passes wrong values."""
    with pytest.raises(ValidationError) as raised:
        Settings.model_validate(values)
    return raised.value


DEFAULTS = parsed("""
    GHEALTH_LISTEN=[::]:25021 GHEALTH_TLS_LISTEN=off
    GHEALTH_TLS_CERT_FILE= GHEALTH_TLS_KEY_FILE= GHEALTH_TLS_CLIENT_CA_FILE=
    GHEALTH_PROBE_URL=http://localhost:15021/healthz/ready GHEALTH_PROBE_TIMEOUT=3s
    GHEALTH_PROBE_SUCCESS_CODES=200-299 GHEALTH_PROBE_HEADERS={} GHEALTH_SERVICES={}
    GHEALTH_CACHE_TTL=1s GHEALTH_WATCH_INTERVAL=1s
    GHEALTH_ANSWER=auto GHEALTH_STATUS_CALLERS=grpc-,Envoy/HC GHEALTH_REFLECTION=true
    GHEALTH_DRAIN_DELAY=5s GHEALTH_SHUTDOWN_GRACE=1s GHEALTH_MAX_WATCHES=100
    GHEALTH_LOG_LEVEL=info GHEALTH_LOG_FORMAT= GHEALTH_ADMIN_LISTEN=127.0.0.1:25022
""")


@pytest.mark.parametrize("blank", [{}, dict.fromkeys(DEFAULTS, ""), dict.fromkeys(DEFAULTS, " \n")])
def test_the_defaults_are_the_contracts(blank: dict[str, str]) -> None:
    """A variable that is absent, empty or white space has the documented default."""
    found = loaded(**blank)
    assert isinstance(found, Settings)
    assert {row.variable: row.value for row in found.rows()} == DEFAULTS
    assert {row.variable: row.default for row in found.rows()} == DEFAULTS
    assert all(row.meaning for row in found.rows())
    assert changed(found) == {}
    assert found.model_fields_set == set()


A, B = httpx.URL("http://a/"), httpx.URL("http://b/")
IPV4, IPV6 = Address("127.0.0.1", 0), Address("::1", 25021)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("LISTEN", "127.0.0.1:0, [::1]:25021,:80", (IPV4, IPV6, Address("::", 80))),
        ("PROBE_URL", "https://gw:15021/ready", (httpx.URL("https://gw:15021/ready"),)),
        ("PROBE_SUCCESS_CODES", "200,204", Matcher(((200, 200), (204, 204)))),
        ("PROBE_HEADERS", '{"X-Key": "s3cret", "B": ""}', {"X-Key": "s3cret", "B": ""}),
        ("SERVICES", '{"a.B": "http://b/"}', {"a.B": Target(B)}),
        ("SERVICES", '{"a": {"url": "http://b/"}}', {"a": Target(B)}),
        ("CACHE_TTL", "0", 0.0),
        ("WATCH_INTERVAL", "10ms", 0.01),
        ("DRAIN_DELAY", "0s", 0.0),
        ("SHUTDOWN_GRACE", "1h", 3600.0),
        ("ANSWER", "CODE", "code"),
        ("STATUS_CALLERS", "grpc-, Probe/1", ("grpc-", "Probe/1")),
        ("REFLECTION", "Off", False),
        ("MAX_WATCHES", "0", 0),
        ("LOG_LEVEL", "WARN", "warning"),
        ("LOG_FORMAT", "JSON", "json"),
        ("ADMIN_LISTEN", "[::1]:25021", (IPV6,)),
        ("ADMIN_LISTEN", "OFF", ()),
    ],
)
def test_a_variable_sets_its_field(name: str, text: str, value: object) -> None:
    """Names and words are read in any case, with white space around them; the change is shown."""
    for variable in (f"GHEALTH_{name}", f"ghealth_{name.lower()}", f"Ghealth_{name.title()}"):
        found = loaded(**{variable: f" \t{text}\r\n"})
        assert isinstance(found, Settings)
        assert getattr(found, name.lower()) == value
        assert list(changed(found)) == [f"GHEALTH_{name}"]


def test_the_same_name_twice_is_a_mistake() -> None:
    """Every further spelling of a name is a line, even with the same or no value."""
    assert mistakes(CACHE_TTL="1s", cache_ttl="1s", Cache_Ttl="") == tuple(
        f"GHEALTH_{name}: GHEALTH_CACHE_TTL is set twice, in different case; expected one of them"
        for name in ("Cache_Ttl", "cache_ttl")
    )


def test_settings_are_frozen() -> None:
    """Nothing changes a setting after it was read."""
    with pytest.raises(ValidationError, match="frozen"):
        settings().cache_ttl = 0


def test_settings_can_be_made_by_a_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """Arguments precede the environment, which fills the rest."""
    monkeypatch.setenv("GHEALTH_CACHE_TTL", "x")
    monkeypatch.setenv("GHEALTH_DRAIN_DELAY", "7s")
    made = Settings(cache_ttl=2)
    assert (made.cache_ttl, made.drain_delay) == (2, 7)


@pytest.mark.parametrize(
    ("name", "value", "field"),
    [
        *((name, found.default, found.default) for name, found in Settings.model_fields.items()),
        ("cache_ttl", 2, 2.0),
        ("cache_ttl", timedelta(milliseconds=1500), 1.5),
        ("listen", "127.0.0.1:0", (IPV4,)),
        ("listen", ["127.0.0.1:0", IPV6], (IPV4, IPV6)),
        ("probe_url", [A, "http://b/"], (A, B)),
        ("probe_headers", {"a": "b"}, {"a": "b"}),
        ("services", {"a": A}, {"a": Target(A)}),
        ("services", {"a": Target(A, {"b": "c"})}, {"a": Target(A, {"b": "c"})}),
    ],
)
def test_values_from_python_are_right(name: str, value: object, field: object) -> None:
    """Every field's own values, and others of Python's types, are as right as texts."""
    found = getattr(Settings.model_validate({name: value}), name)
    assert (found, type(found)) == (field, type(field))


DEEP: list[object] = []
for _ in range(5000):
    DEEP = [DEEP]
NEVER_RIGHT: list[object] = [A, DEEP, {"a": 5}]
NOT_SECONDS: list[object] = [None, -1, 3601, float("nan"), True, timedelta(hours=2)]
WRONG: dict[str, list[object]] = {
    "listen": [None, [Address("gw", 1)], [Address(5, "x")]],  # type: ignore[arg-type]
    "admin_listen": [None, IPV6, ["127.0.0.1:1", "127.0.0.1:2"]],
    "tls_cert_file": [5, "\0"],
    "probe_url": [None, (), ["x"]],
    "probe_timeout": [0, *NOT_SECONDS],
    "probe_success_codes": [None, 200, Matcher(((1, 2),)), Matcher(5)],  # type: ignore[arg-type]
    "probe_headers": [None, {1: "a"}, {"a": "s3cret\n"}],
    "services": [None, ["a"], {"a": Target("s3cret")}, {"a\ud800": B}],  # type: ignore[arg-type]
    "cache_ttl": NOT_SECONDS,
    "watch_interval": [timedelta(0), *NOT_SECONDS],
    "status_callers": [None, ["a b"]],
    "reflection": [None, "", 5],
    "max_watches": [None, -5, 2.5, True, timedelta(1)],
}


@pytest.mark.parametrize("name", Settings.model_fields)
def test_other_values_from_python_are_validation_errors(name: str) -> None:
    """A ValidationError names the setting and what it accepts, and shows no secret of any."""
    for value in NEVER_RIGHT + WRONG.get(name, []):
        raised = refusal({"probe_headers": {"a": "s3cret"}} | {name: value})
        (error,) = raised.errors()
        assert error["loc"] == (name,)
        assert error["msg"].startswith("invalid value ")
        assert "; expected " in error["msg"]
        assert "s3cret" not in f"{raised}{raised.errors()}{raised.json()}"


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
    (error,) = refusal(values).errors()
    assert error["msg"].startswith(text)


def test_several_urls_are_separated_by_commas() -> None:
    """White space around a comma is ignored; other characters belong to a URL."""
    urls = ("http://a/x%2Cy;z|b?z=1;3|4&n=1:2/", "HTTPS://b:1/", "http://c/")
    for text in (",".join(urls), " , ".join(urls), ",\n".join(urls)):
        assert settings(PROBE_URL=text).probe_url == tuple(map(httpx.URL, urls))


SEVERAL = "several URLs in one, white space, or a comma; in a URL, write %2C"
NO_SCHEME = "no http:// or https:// before or after a comma; in a URL, write %2C"


@pytest.mark.parametrize("end", [" http://b/", "\nhttp://b/", ";HTTP://b/", "|https://b/"])
def test_urls_without_a_comma_between_them_are_a_mistake(end: str) -> None:
    """Folded YAML lists make them, and all but the first URL would never be probed."""
    assert mistake(PROBE_URL=f"http://a/{end}").endswith(f"https:// URLs ({SEVERAL})")


@pytest.mark.parametrize("end", ["", " ,http://b/", "y", "gw:1", "127.0.0.1:1/", "gw:80,http://b/"])
def test_a_url_without_a_scheme_is_a_mistake(end: str) -> None:
    """It may be a part of the path before the comma, or a URL that would never be probed."""
    assert mistake(PROBE_URL=f"http://a/x,{end}").endswith(f"https:// URLs ({NO_SCHEME})")


@pytest.mark.parametrize(("url", "why"), [("http://b/,c/", SEVERAL), ("s3cret", NO_SCHEME)])
def test_a_service_has_one_url(url: str, why: str) -> None:
    """A second one would never be probed; the service is named, but its URL may be a secret."""
    line = mistake(SERVICES=json.dumps({"a": "http://a/", "b": url}))
    assert line.endswith(f"(b: url: {why})")
    assert url not in line


MISTAKES = {
    "LISTEN": "25021  ::1:25021  [::]:65536  [::1]:1,  [gw]:1  :-1  :1,off  gw:1  0:1",
    "TLS_LISTEN": "25021",
    "TLS_CLIENT_CA_FILE": "/nowhere/ca.crt",
    "ADMIN_LISTEN": "25022  :1,:2  localhost.:1",
    "PROBE_URL": "gw:15021  ftp://gw/  http://  http://gw:99999/  http://g:0  http://g..w/"
    f"  http://xn--/  http://{'g' * 64}/  http://[gw/  http://g w/  http://\x01/  http://a\udcff/"
    "  http://a/,ftp://b/  ,http://a/",
    "PROBE_TIMEOUT": "0  9ms  -1  3 s  nan  inf  3601  1h1s",
    "PROBE_SUCCESS_CODES": "ok  503  0-999  100-199",
    "CACHE_TTL": "-0.1  nan  one",
    "WATCH_INTERVAL": "0",
    "ANSWER": "automatic  both",
    "STATUS_CALLERS": ",  grpc-,  a b",
    "REFLECTION": "maybe  2",
    "DRAIN_DELAY": "-1",
    "SHUTDOWN_GRACE": "x",
    "MAX_WATCHES": f"-1  1.5  100001  {'9' * 5000}",
    "LOG_LEVEL": "loud",
    "LOG_FORMAT": "xml",
    "SERVICES": 'x  []  {"": "http://a/"}  {"liveness": "http://a/"}  {"a": 1}'
    '  {"a": "http://b/", "a": "http://c/"}  {"a\\ud800": "http://b/"}  {"a": {"headers": {}}}'
    '  {"a": {"url": "http://b/", "heders": {}}}  {"a": {"url": "http://b/", "headers": []}}'
    f"  {'[' * 100_000}  {{'a': {'9' * 5000}}}",
}
"""Invalid values, with two spaces between them."""


@pytest.mark.parametrize(
    ("name", "text"), [(name, text) for name in MISTAKES for text in MISTAKES[name].split("  ")]
)
def test_a_mistake_is_one_line(name: str, text: str) -> None:
    """An invalid value is one line: the variable, its value and what is expected."""
    line = mistake(**{name: text})
    shown = repr(MASK) if name == "SERVICES" else repr(text[:20])[:-1]
    assert line.startswith(f"GHEALTH_{name}: invalid value {shown}")
    assert "; expected " in line
    assert "\n" not in line
    assert line.encode()
    assert not re.search("invalid literal|Errno|Error", line)  # Python's own words
    assert len(line) < 300


NOT_HEADERS = (
    's3cret  "s3cret"  {"a b": "s3cret"}  {"a": "s3cret\\n"}  {"a": " s3cret"}  {"a": ["s3cret"]}'
    '  {"a": "s3cret", "a": "s3cret"}  {"a": "s3crét"}  {"Host": "s3cret", "host": "s3cret"}'
    f'  {{"": "s3cret"}}  {"[" * 100_000}s3cret'
)


@pytest.mark.parametrize("text", NOT_HEADERS.split("  "))
def test_a_mistake_in_headers_shows_no_secrets(text: str) -> None:
    """Other texts than an object of headers are refused, for services too, without secrets."""
    service = f'{{"a": {{"url": "http://b/", "headers": {text}}}}}'
    for name, value in {"PROBE_HEADERS": text, "SERVICES": service}.items():
        line = mistake(**{name: value})
        assert line.startswith(f"GHEALTH_{name}: invalid value '***'; expected a JSON object")
        assert "s3cr" not in line


CONNECTION_HEADERS = (
    "Connection upgrade Content-Length Transfer-Encoding TE Trailer Expect Keep-Alive "
    "Proxy-Connection HTTP2-Settings"
)


@pytest.mark.parametrize("name", CONNECTION_HEADERS.split())
def test_headers_about_the_connection_are_refused(name: str) -> None:
    """The HTTP library decides them: `Upgrade` has hung the whole process."""
    line = mistake(PROBE_HEADERS=json.dumps({name: "h2c"}))
    assert line.endswith(f"(the header {name} cannot be set)")


@pytest.mark.parametrize(
    ("variables", "names"),
    [
        # Values, then names, then what does not go together.
        (
            "CACHE_TTL=x PROBE_TIMOUT=3 PROBE_HEADERS=[ DRAIN_DELAY=1 drain_delay=1 LISTEN=:1,:1",
            "PROBE_HEADERS CACHE_TTL PROBE_TIMOUT drain_delay LISTEN",
        ),
        # Nothing about what goes together with an invalid value.
        (
            "LISTEN=off TLS_LISTEN=x TLS_CERT_FILE=/dev/null TLS_KEY_FILE=/gone",
            "TLS_LISTEN TLS_KEY_FILE",
        ),
        # Nothing about the default in place of an invalid value.
        ("LISTEN=x ADMIN_LISTEN=[::]:25021", "LISTEN"),
    ],
)
def test_all_mistakes_are_reported_at_once(variables: str, names: str) -> None:
    """A person corrects everything in one round, and nothing that is only a consequence."""
    lines = mistakes(**parsed(variables))
    assert [line.split(":")[0] for line in lines] == [f"GHEALTH_{name}" for name in names.split()]


def test_an_unknown_name_is_a_mistake() -> None:
    """An unknown name is refused, with the nearest known one if there is one."""
    assert mistakes(**{"PROB_URL": "http://s3cret/", "QUUX": "1", "\udcff": "", "lisen": "1"}) == (
        "GHEALTH_PROB_URL: unknown setting; did you mean GHEALTH_PROBE_URL?",
        "GHEALTH_QUUX: unknown setting; 'ghealth settings' lists all settings",
        "GHEALTH_lisen: unknown setting; did you mean GHEALTH_LISTEN?",
        "GHEALTH_\\udcff: unknown setting; 'ghealth settings' lists all settings",
    )


SERVICE_LINKS = (
    "PORT PORT_25021_TCP PORT_25021_TCP_ADDR SERVICE_HOST SERVICE_PORT SERVICE_PORT_GRPC "
    "PORT_53_UDP_PORT PORT_5000_SCTP_PROTO METRICS_SERVICE_HOST METRICS_PORT "
    "METRICS_PORT_9090_TCP_ADDR"
)


@pytest.mark.parametrize("name", SERVICE_LINKS.split())
def test_service_links_are_ignored(name: str) -> None:
    """The variables that Kubernetes injects for a Service ghealth or ghealth-x are no mistakes."""
    assert settings(**{name: "tcp://10.0.0.1:25021"}) == settings()


def test_a_plain_port_points_to_listen() -> None:
    """GHEALTH_PORT with a number was written by a person; other ports are a service link's."""
    assert mistake(PORT="8080", SERVICE_PORT="25021") == (
        "GHEALTH_PORT: unknown setting; expected the port in GHEALTH_LISTEN, such as [::]:25021"
    )


def test_other_programs_variables_do_not_matter() -> None:
    """Only GHEALTH_* is ours: a .env file's or another program's names are not."""
    assert loaded(LISTEN="x", GHEALTHY="1") == settings()


SECRET_URL = "http://me:s3cret@gw/ready?token=s3cret"


def test_secrets_are_masked_wherever_settings_are_shown() -> None:
    """Header values, user info and queries of URLs show as ***."""
    target = {"url": SECRET_URL, "headers": {"X-Key": "s3cret"}}
    found = settings(
        PROBE_URL=f"{SECRET_URL},{SECRET_URL}#s3cret",
        SERVICES=json.dumps({"a": SECRET_URL, "b": target}),
        PROBE_HEADERS='{"Authorization": "s3cret"}',
    )
    url = "http://***@gw/ready?***"
    assert changed(found) == {
        "GHEALTH_PROBE_URL": f"{url},{url}",
        "GHEALTH_SERVICES": json.dumps({"a": url, "b": {"url": url, "headers": {"X-Key": "***"}}}),
        "GHEALTH_PROBE_HEADERS": '{"Authorization": "***"}',
    }
    assert "s3cret" not in repr(found)


NOT_URLS = (
    "htp://me:s3cret@gw/ready?token=s3cret  http://me:pa/s3cret@gw/  http://me:pa s3cret@gw:x/"
    "  http://me@s3cret@gw:x/  me:s3cret@gw/ready  http://gw:x/?token=a s3cret"
    "  http://gw:x/?token=a@s3cret  http://me:s3cret?s3cret@gw:99999/"
    "  http://gw/?token=s3cret,http://me:s3cret@gw:x/"
)


@pytest.mark.parametrize("url", NOT_URLS.split("  "))
def test_secrets_are_masked_in_mistakes_too(url: str) -> None:
    """An invalid URL may still hold a password, wherever a typing mistake put it."""
    line = mistake(PROBE_URL=url)
    assert "s3cret" not in line
    assert MASK in line


TLS_LISTEN = "TLS_LISTEN=[::]:25023"
TWICE = "occurs twice; expected different addresses"
WITHOUT = "set without GHEALTH_TLS_LISTEN; expected both"
NO_PAIR = [
    f"TLS_{name}_FILE: unset; expected a PEM file, since GHEALTH_TLS_LISTEN is set"
    for name in ("CERT", "KEY")
]


@pytest.mark.parametrize(
    ("variables", "lines"),
    [
        ("LISTEN=off", ["LISTEN: off; expected an address, or GHEALTH_TLS_LISTEN too"]),
        ("TLS_CERT_FILE=/dev/null", [f"TLS_CERT_FILE: {WITHOUT}"]),
        ("TLS_CLIENT_CA_FILE=/dev/null", [f"TLS_CLIENT_CA_FILE: {WITHOUT}"]),
        (TLS_LISTEN, NO_PAIR),
        ("LISTEN=:1,[::1]:1 ADMIN_LISTEN=[0::1]:1", [f"ADMIN_LISTEN: [::1]:1 {TWICE}"]),
        (f"LISTEN=[::]:25023 {TLS_LISTEN}", [f"TLS_LISTEN: [::]:25023 {TWICE}", *NO_PAIR]),
    ],
)
def test_settings_that_do_not_go_together(variables: str, lines: list[str]) -> None:
    """No door, a certificate without its port or key, and an address in use are mistakes."""
    assert mistakes(**parsed(variables)) == tuple(f"GHEALTH_{line}" for line in lines)


def test_the_default_admin_port_may_occur_twice() -> None:
    """It gives way to the other address."""
    settings(LISTEN="127.0.0.1:25022")


@pytest.mark.parametrize(("path", "why"), [("/", "Is a"), ("/gone", "No such file or")])
def test_a_file_that_cannot_be_read_is_a_mistake(path: str, why: str) -> None:
    """The cause is the system's."""
    cert, key = mistakes(TLS_CERT_FILE=path, **parsed(TLS_LISTEN))
    assert cert.endswith(f"; expected a file that can be read ({why} directory)")
    assert key.startswith("GHEALTH_TLS_KEY_FILE: unset; ")


def test_what_is_shown_is_utf_8(tmp_path: Path) -> None:
    """A path may have other bytes; the status page could not show them."""
    path = tmp_path / "\udcff"
    path.touch()
    found = settings(TLS_LISTEN="[::1]:0", TLS_CERT_FILE=str(path), TLS_KEY_FILE=str(path))
    assert found.tls_cert_file == path
    assert changed(found)["GHEALTH_TLS_CERT_FILE"] == f"{tmp_path}/\\udcff"

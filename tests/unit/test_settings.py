import json
import ssl
from pathlib import Path
from typing import Any

import httpx
import pytest
import trustme
from pydantic import ValidationError

from ghealth.address import Address
from ghealth.matcher import Matcher
from ghealth.probe import PROBES, _request
from ghealth.settings import MASK, Mistakes, Settings, Target, load


@pytest.fixture(autouse=True)
def _no_certificates_are_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine's own choice of certificates is not what is tested."""
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    monkeypatch.delenv("SSL_CERT_DIR", raising=False)


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
    assert found.tls_files is None
    assert all(row.meaning for row in found.rows())


VALUES: dict[str, tuple[str, Any]] = {
    "LISTEN": (
        "127.0.0.1:0, [::1]:25021,pod-1.local:80",
        (Address("127.0.0.1", 0), Address("::1", 25021), Address("pod-1.local", 80)),
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
    "ADMIN_LISTEN": ("[::]:25022", Address("::", 25022)),
}

TLS = {"TLS_LISTEN", "TLS_CERT_FILE", "TLS_KEY_FILE", "TLS_CLIENT_CA_FILE"}
"""They are set together, in separate tests."""


def test_every_variable_has_a_test_of_its_own() -> None:
    """A new variable is not forgotten here."""
    assert {name.upper() for name in Settings.model_fields} == set(VALUES) | TLS


@pytest.mark.parametrize("name", VALUES)
def test_a_variable_sets_its_field(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Each variable is read, and shows as changed."""
    text, value = VALUES[name]
    found = settings(monkeypatch, **{name: text})
    assert getattr(found, name.lower()) == value
    assert list(changed(found)) == [f"GHEALTH_{name}"]


@pytest.mark.parametrize("name", VALUES)
def test_names_are_case_insensitive(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A name in lower or mixed case sets the same field."""
    text, value = VALUES[name]
    for variable in (f"ghealth_{name.lower()}", f"Ghealth_{name.title()}"):
        with monkeypatch.context() as patch:
            found = loaded(patch, **{variable: text})
            assert isinstance(found, Settings)
            assert getattr(found, name.lower()) == value


@pytest.mark.parametrize("name", VALUES)
def test_white_space_around_a_value_is_ignored(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A Secret or an env file may end with a newline."""
    text, value = VALUES[name]
    assert getattr(settings(monkeypatch, **{name: f" \t{text}\r\n"}), name.lower()) == value


@pytest.mark.parametrize("blank", ["", " ", "\n", " \t\r\n"])
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
        ("LOG_FORMAT", "JSON", "json"),
        ("REFLECTION", "True", True),
        ("REFLECTION", "FALSE", False),
        ("REFLECTION", "1", True),
        ("REFLECTION", "0", False),
        ("REFLECTION", "Yes", True),
        ("REFLECTION", "no", False),
        ("REFLECTION", "ON", True),
        ("REFLECTION", "Off", False),
        ("ADMIN_LISTEN", "OFF", None),
        ("TLS_LISTEN", "Off", ()),
    ],
)
def test_words_are_case_insensitive(
    monkeypatch: pytest.MonkeyPatch, name: str, text: str, value: object
) -> None:
    """A word means the same in any case."""
    assert getattr(settings(monkeypatch, **{name: text}), name.lower()) == value


def test_the_same_name_twice_is_a_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two spellings of one name are one line, even with the same value; the order is fixed."""
    (line,) = mistakes(
        monkeypatch, GHEALTH_CACHE_TTL="1s", ghealth_cache_ttl="1s", Ghealth_Cache_Ttl=""
    )
    assert line == (
        "GHEALTH_CACHE_TTL and Ghealth_Cache_Ttl and ghealth_cache_ttl: the same setting; "
        "expected one of them"
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
    """Arguments are texts or values, and precede the environment, which fills the rest."""
    monkeypatch.setenv("GHEALTH_CACHE_TTL", "7s")
    monkeypatch.setenv("GHEALTH_DRAIN_DELAY", "7s")
    made = Settings(cache_ttl="2s", listen=(Address("127.0.0.1", 0),))  # type: ignore[arg-type]
    assert (made.cache_ttl, made.drain_delay) == (2, 7)
    assert made.listen == (Address("127.0.0.1", 0),)
    with pytest.raises(ValidationError, match="GHEALTH_LISTEN: off"):
        Settings(listen=())


@pytest.mark.parametrize(
    ("url", "host", "port", "path", "authorization"),
    [
        ("http://localhost/", "localhost", None, b"/", None),
        ("https://gw", "gw", None, b"/", None),
        ("http://gw:80/a?b=1#c", "gw", None, b"/a?b=1", None),
        ("http://[::1]:15021/", "[::1]:15021", 15021, b"/", None),
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
    """A comma before a scheme separates; any other comma belongs to a URL."""
    found = settings(monkeypatch, PROBE_URL="http://a/x,y?z=1,2 ,\n HTTPS://b:1/, http://c/")
    assert found.probe_url == (
        httpx.URL("http://a/x,y?z=1,2"),
        httpx.URL("https://b:1/"),
        httpx.URL("http://c/"),
    )


MISTAKES = {
    "GHEALTH_LISTEN": ["25021", "::1:25021", "[::]:65536", "a:1,", "[gw]:1", "a:-1", "a:1,off"],
    "GHEALTH_TLS_LISTEN": ["25021", "[::]:65536"],
    "GHEALTH_TLS_CERT_FILE": ["/nowhere/tls.crt"],
    "GHEALTH_TLS_KEY_FILE": ["/"],
    "GHEALTH_TLS_CLIENT_CA_FILE": ["/nowhere/ca.crt"],
    "GHEALTH_ADMIN_LISTEN": ["25022", "a:1,b:2", "[::]:65536"],
    "GHEALTH_PROBE_URL": [
        "gw:15021",
        "ftp://gw/",
        "http://",
        "http://gw:99999/",
        "http://g:0",
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
    """Other texts than an object of headers are refused without the secrets in them."""
    (line,) = mistakes(monkeypatch, GHEALTH_PROBE_HEADERS=text)
    assert line.startswith("GHEALTH_PROBE_HEADERS: invalid value '***'; expected a JSON object")
    assert "s3cr" not in line


@pytest.mark.parametrize("text", NOT_HEADERS)
def test_headers_of_a_service_have_the_same_rules(
    monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    """What is refused for the gateway is refused for a service, without the secrets in it."""
    services = f'{{"a": {{"url": "http://b/", "headers": {text}}}}}'
    (line,) = mistakes(monkeypatch, GHEALTH_SERVICES=services)
    assert line.startswith("GHEALTH_SERVICES: invalid value '***'; expected a JSON object")
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
    for variable, text in [
        ("GHEALTH_PROBE_HEADERS", json.dumps({name: "h2c"})),
        ("GHEALTH_SERVICES", json.dumps({"a": {"url": "http://b/", "headers": {name: "h2c"}}})),
    ]:
        with monkeypatch.context() as patch:
            (line,) = mistakes(patch, **{variable: text})
        assert line.startswith(f"{variable}: invalid value '***'; expected a JSON object")
        assert f"the header {name} cannot be set)" in line


def test_names_of_headers_that_differ_in_case_are_one_header(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """HTTP would send both: one of them is meant."""
    (line,) = mistakes(monkeypatch, GHEALTH_PROBE_HEADERS='{"Host": "a", "host": "b"}')
    assert "two headers' names differ only in case" in line


def test_a_mistake_in_a_service_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The value is a secret, the service's name is not."""
    (line,) = mistakes(monkeypatch, GHEALTH_SERVICES='{"a": "http://b/", "c": "s3cret"}')
    assert "'c'" in line
    assert "s3cret" not in line


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
        GHEALTH_LISTEN="0.0.0.0:1,[::]:1",
        GHEALTH_TLS_KEY_FILE="/dev/null",
    )
    assert [line.split()[0].rstrip(":") for line in lines] == [
        "GHEALTH_PROBE_TIMOUT",
        "GHEALTH_DRAIN_DELAY",
        "GHEALTH_PROBE_TIMEOUT",
        "GHEALTH_PROBE_HEADERS",
        "GHEALTH_CACHE_TTL",
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
        GHEALTH_TLS_KEY_FILE="/dev/null",
    )
    assert [line.split()[0] for line in lines] == ["GHEALTH_TLS_LISTEN:"]


def test_an_unknown_name_is_a_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    """An unknown name is refused, with the nearest known one if there is one."""
    lines = mistakes(
        monkeypatch, GHEALTH_PROB_URL="http://s3cret/", GHEALTH_QUUX="1", ghealth_lisen="1"
    )
    assert lines == (
        "GHEALTH_PROB_URL: unknown setting; did you mean GHEALTH_PROBE_URL?",
        "GHEALTH_QUUX: unknown setting; 'ghealth settings' lists all settings",
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
    monkeypatch.setenv("GHEALTH_PROBE_HEADERS", '{"a b": "s3cret"}')
    with pytest.raises(ValidationError) as raised:
        Settings()
    assert "s3cret" not in str(raised.value)


def test_off_needs_a_port_with_tls(monkeypatch: pytest.MonkeyPatch) -> None:
    """`off` is for those who serve with TLS only."""
    assert mistakes(monkeypatch, GHEALTH_LISTEN="off") == (
        "GHEALTH_LISTEN: off; expected an address, or GHEALTH_TLS_LISTEN too",
    )


@pytest.fixture
def pair(tmp_path: Path) -> dict[str, str]:
    """A certificate and its key, as variables."""
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost")
    authority.cert_pem.write_to_path(tmp_path / "ca.crt")
    certificate.private_key_pem.write_to_path(tmp_path / "tls.key")
    for part in certificate.cert_chain_pems:
        part.write_to_path(tmp_path / "tls.crt", append=True)
    return {
        "GHEALTH_TLS_LISTEN": "127.0.0.1:0",
        "GHEALTH_TLS_CERT_FILE": str(tmp_path / "tls.crt"),
        "GHEALTH_TLS_KEY_FILE": str(tmp_path / "tls.key"),
        "GHEALTH_TLS_CLIENT_CA_FILE": str(tmp_path / "ca.crt"),
    }


def test_tls_has_a_certificate_and_may_verify_clients(
    monkeypatch: pytest.MonkeyPatch, pair: dict[str, str]
) -> None:
    """With a certificate and its key, TLS is served, beside the plain port or instead of it."""
    found = loaded(monkeypatch, GHEALTH_LISTEN="off", **pair)
    assert isinstance(found, Settings)
    assert found.listen == ()
    assert found.tls_listen == (Address("127.0.0.1", 0),)
    assert found.tls_files is not None
    assert [found.tls_files.cert, found.tls_files.key, found.tls_files.client_ca] == [
        found.tls_cert_file,
        found.tls_key_file,
        found.tls_client_ca_file,
    ]
    assert changed(found) == {**pair, "GHEALTH_LISTEN": "off"}


@pytest.mark.parametrize("name", ["CERT", "KEY", "CLIENT_CA"])
def test_a_tls_file_needs_tls_listen(
    monkeypatch: pytest.MonkeyPatch, pair: dict[str, str], name: str
) -> None:
    """A certificate that would serve nothing is a mistake."""
    variable = f"GHEALTH_TLS_{name}_FILE"
    assert mistakes(monkeypatch, **{variable: pair[variable]}) == (
        f"{variable}: set without GHEALTH_TLS_LISTEN; expected both",
    )


def test_tls_listen_needs_a_certificate_and_its_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each file that is missing has its line."""
    assert mistakes(monkeypatch, GHEALTH_TLS_LISTEN="[::]:25023") == (
        "GHEALTH_TLS_CERT_FILE: unset; expected a PEM file, since GHEALTH_TLS_LISTEN is set",
        "GHEALTH_TLS_KEY_FILE: unset; expected a PEM file, since GHEALTH_TLS_LISTEN is set",
    )


def test_a_certificate_that_cannot_be_used_is_a_mistake(
    monkeypatch: pytest.MonkeyPatch, pair: dict[str, str]
) -> None:
    """Nothing that is accepted at the start fails at the first handshake."""
    Path(pair["GHEALTH_TLS_CERT_FILE"]).write_text("x")
    (line,) = mistakes(monkeypatch, **pair)
    assert line.startswith("GHEALTH_TLS_CERT_FILE: ")


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"GHEALTH_LISTEN": "0.0.0.0:1,[::]:1"}, "GHEALTH_LISTEN: 0.0.0.0:1 is part of [::]:1"),
        ({"GHEALTH_LISTEN": "[::]:1,0.0.0.0:1"}, "GHEALTH_LISTEN: 0.0.0.0:1 is part of [::]:1"),
        (
            {"GHEALTH_LISTEN": ":1", "GHEALTH_ADMIN_LISTEN": "[::1]:1"},
            "GHEALTH_ADMIN_LISTEN: [::1]:1 is part of [::]:1",
        ),
    ],
)
def test_two_wildcards_have_a_hint(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], expected: str
) -> None:
    """`0.0.0.0` beside `[::]`, a habit from nginx, and others that a wildcard includes."""
    (line,) = mistakes(monkeypatch, **variables)
    assert line == f"{expected}; expected one of them, [::] accepts IPv4 too"


def test_an_address_beside_a_wildcard_of_ipv4_has_a_hint(monkeypatch: pytest.MonkeyPatch) -> None:
    """`0.0.0.0` includes every other IPv4 address."""
    assert mistakes(monkeypatch, GHEALTH_LISTEN="127.0.0.1:1,0.0.0.0:1") == (
        "GHEALTH_LISTEN: 127.0.0.1:1 is part of 0.0.0.0:1; expected one of them",
    )


def test_an_address_that_occurs_twice_is_a_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second one would find its port taken; a free port can be had twice."""
    assert mistakes(monkeypatch, GHEALTH_LISTEN="a:1,b:1", GHEALTH_ADMIN_LISTEN="a:1") == (
        "GHEALTH_ADMIN_LISTEN: a:1 occurs twice; expected different addresses",
    )
    found = loaded(monkeypatch, GHEALTH_LISTEN="[::1]:0,[::1]:0", GHEALTH_ADMIN_LISTEN="[::1]:0")
    assert isinstance(found, Settings)


NO_CERTIFICATES = ssl.DefaultVerifyPaths(
    "", "", "SSL_CERT_FILE", "/gone/cert.pem", "SSL_CERT_DIR", "/gone/certs"
)


def test_the_default_admin_port_may_be_taken_by_another_address(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It gives way: only one that was set is a mistake."""
    assert isinstance(loaded(monkeypatch, GHEALTH_LISTEN="[::]:25022"), Settings)


@pytest.mark.parametrize("address", ["224.0.0.1:1", "[ff02::1%lo]:1", "255.255.255.255:1"])
@pytest.mark.parametrize("name", ["LISTEN", "TLS_LISTEN", "ADMIN_LISTEN"])
def test_an_address_of_many_machines_is_a_mistake(
    monkeypatch: pytest.MonkeyPatch, name: str, address: str
) -> None:
    """The kernel may listen on a multicast or broadcast address, but no client can connect."""
    (line,) = mistakes(monkeypatch, **{f"GHEALTH_{name}": address})
    assert line.endswith("(multicast and broadcast addresses cannot be connected to)")


HTTPS = [
    {"GHEALTH_PROBE_URL": "http://a/,https://gw/"},
    {"GHEALTH_SERVICES": '{"a": "https://gw/"}'},
]


@pytest.mark.parametrize("variables", HTTPS)
def test_a_trust_store_that_cannot_be_read_is_a_mistake(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variables: dict[str, str]
) -> None:
    """OpenSSL ignores it silently, and every probe by https would fail."""
    no_pem = tmp_path / "no.pem"
    no_pem.write_text("x")
    for path, why in [
        (tmp_path / "none", "No such file or directory"),
        (no_pem, "no certificates in it"),
    ]:
        with monkeypatch.context() as patch:
            (line,) = mistakes(patch, SSL_CERT_FILE=str(path), **variables)
        assert line == (
            f"SSL_CERT_FILE: {path}: {why}; expected a PEM file, since a target has an https URL"
        )
    with monkeypatch.context() as patch:
        (line,) = mistakes(patch, SSL_CERT_DIR=str(no_pem), **variables)
    assert line == (
        f"SSL_CERT_DIR: {no_pem}: not a folder; expected one with certificates, since a target "
        "has an https URL"
    )


@pytest.mark.parametrize("variables", HTTPS)
def test_a_system_without_certificates_is_a_mistake(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]
) -> None:
    """A small image may have none."""
    monkeypatch.setattr(ssl, "get_default_verify_paths", lambda: NO_CERTIFICATES)
    (line,) = mistakes(monkeypatch, **variables)
    assert line.startswith("SSL_CERT_FILE: unset, and the system has no certificates in /gone")


def test_certificates_matter_only_to_https(monkeypatch: pytest.MonkeyPatch) -> None:
    """With http targets, nothing reads them."""
    monkeypatch.setattr(ssl, "get_default_verify_paths", lambda: NO_CERTIFICATES)
    assert isinstance(loaded(monkeypatch, SSL_CERT_FILE="/gone"), Settings)


def test_a_probe_that_cannot_be_made_is_a_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the HTTP library would refuse at the first probe is refused at the start."""

    def refuse(url: httpx.URL, **_: object) -> Any:
        raise ValueError(f"not {url.host}")

    monkeypatch.setitem(PROBES, "http", refuse)
    lines = mistakes(
        monkeypatch, GHEALTH_PROBE_URL=SECRET_URL, GHEALTH_SERVICES='{"a": "http://b/"}'
    )
    assert lines == (
        "GHEALTH_PROBE_URL: http://***@gw/ready?*** cannot be probed: not gw",
        "GHEALTH_SERVICES: http://b/ cannot be probed: not b",
    )

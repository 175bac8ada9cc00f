import dataclasses
import importlib.util
import json
import pickle
from typing import Any

import pytest

from ghealth.address import Address
from ghealth.environment import Environment, load
from ghealth.settings import Mistakes, Settings
from ghealth.target import Target


def loaded(monkeypatch: pytest.MonkeyPatch, **variables: str) -> Settings | Mistakes:
    """Load the settings of an environment with these variables of ghealth's alone."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return load()


def settings(monkeypatch: pytest.MonkeyPatch, **variables: str) -> Settings:
    found = loaded(monkeypatch, **{f"GHEALTH_{name}": value for name, value in variables.items()})
    assert isinstance(found, Settings), found
    return found


def mistakes(monkeypatch: pytest.MonkeyPatch, **variables: str) -> tuple[str, ...]:
    found = loaded(monkeypatch, **variables)
    assert isinstance(found, Mistakes), found
    return found.lines


def test_the_defaults_are_the_contracts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a variable, everything is as documented."""
    assert {row.variable: row.value for row in settings(monkeypatch).rows} == {
        "GHEALTH_LISTEN": "[::]:25021",
        "GHEALTH_PROBE_URL": "http://localhost:15021/healthz/ready",
        "GHEALTH_PROBE_TIMEOUT": "3",
        "GHEALTH_PROBE_SUCCESS_CODES": "200-299",
        "GHEALTH_PROBE_HEADERS": "{}",
        "GHEALTH_SERVICES": "{}",
        "GHEALTH_CACHE_TTL": "1",
        "GHEALTH_WATCH_INTERVAL": "1",
        "GHEALTH_ANSWER": "auto",
        "GHEALTH_STATUS_CALLERS": "grpc-,Envoy/HC",
        "GHEALTH_REFLECTION": "true",
        "GHEALTH_DRAIN_DELAY": "5",
        "GHEALTH_SHUTDOWN_GRACE": "1",
        "GHEALTH_MAX_WATCHES": "100",
        "GHEALTH_LOG_LEVEL": "info",
        "GHEALTH_LOG_FORMAT": "",
        "GHEALTH_METRICS_LISTEN": "",
    }
    assert settings(monkeypatch).changed() == {}


VALUES: dict[str, tuple[str, Any]] = {
    "LISTEN": (
        "127.0.0.1:0, [::1]:25021,pod-1.local:80",
        (Address("127.0.0.1", 0), Address("::1", 25021), Address("pod-1.local", 80)),
    ),
    "PROBE_URL": ("https://gw:15021/ready", Target("gw", 15021, True, "gw:15021", "/ready", None)),
    "PROBE_TIMEOUT": ("0.5", 0.5),
    "PROBE_HEADERS": ('{"X-Key": "s3cret", "Empty": ""}', {"X-Key": "s3cret", "Empty": ""}),
    "SERVICES": ('{"a.B": "http://b:1/"}', {"a.B": Target("b", 1, False, "b:1", "/", None)}),
    "CACHE_TTL": ("0", 0.0),
    "WATCH_INTERVAL": ("0.01", 0.01),
    "ANSWER": ("code", "code"),
    "STATUS_CALLERS": ("grpc-, Probe/1", ("grpc-", "Probe/1")),
    "REFLECTION": ("false", False),
    "DRAIN_DELAY": ("0", 0.0),
    "SHUTDOWN_GRACE": ("3600", 3600.0),
    "MAX_WATCHES": ("0", 0),
    "LOG_LEVEL": ("debug", "debug"),
    "LOG_FORMAT": ("json", "json"),
    "METRICS_LISTEN": ("[::]:25022", Address("::", 25022)),
}


@pytest.mark.parametrize("name", VALUES)
def test_a_variable_sets_its_field(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Each variable is read, and shows as changed."""
    text, value = VALUES[name]
    found = settings(monkeypatch, **{name: text})
    assert getattr(found, "target" if name == "PROBE_URL" else name.lower()) == value
    assert list(found.changed()) == [f"GHEALTH_{name}"]


def test_success_codes_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """PROBE_SUCCESS_CODES takes an ALB's matcher."""
    found = settings(monkeypatch, PROBE_SUCCESS_CODES="200,204")
    assert 204 in found.probe_success_codes
    assert found.changed() == {"GHEALTH_PROBE_SUCCESS_CODES": "200,204"}


def test_nobody_may_read_the_status(monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty STATUS_CALLERS is a list of nobody."""
    assert settings(monkeypatch, STATUS_CALLERS="").status_callers == ()


def test_every_variable_has_a_test_of_its_own() -> None:
    """A new variable is not forgotten here."""
    fields = {name.upper() for name in Environment.model_fields}
    assert fields - set(VALUES) == {"PROBE_SUCCESS_CODES"}


def test_settings_are_frozen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing changes a setting after it was read."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings(monkeypatch).cache_ttl = 0  # type: ignore[misc]


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("http://localhost/", Target("localhost", 80, False, "localhost", "/", None)),
        ("https://gw", Target("gw", 443, True, "gw", "/", None)),
        ("http://gw:80/a?b=1#c", Target("gw", 80, False, "gw", "/a?b=1", None)),
        ("http://[::1]:15021/", Target("::1", 15021, False, "[::1]:15021", "/", None)),
        (
            "http://bücher.test/ä",
            Target("xn--bcher-kva.test", 80, False, "xn--bcher-kva.test", "/%C3%A4", None),
        ),
        ("http://me:p%40ss@gw/", Target("gw", 80, False, "gw", "/", "bWU6cEBzcw==")),
        ("http://me@gw/", Target("gw", 80, False, "gw", "/", "bWU6")),
    ],
)
def test_a_url_is_taken_apart(monkeypatch: pytest.MonkeyPatch, url: str, target: Target) -> None:
    """A probe is told whom to connect to, what to send and by what name."""
    assert settings(monkeypatch, PROBE_URL=url).target == target


def test_settings_go_through_a_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a fork read is what this process has read."""
    for found in (settings(monkeypatch, SERVICES='{"a": "http://a/"}'), Mistakes(("x",))):
        assert pickle.loads(pickle.dumps(found)) == found


MISTAKES = {
    "GHEALTH_LISTEN": ["", "25021", ":25021", "::1:25021", "[::]:65536", "a:1,", "[gw]:1", "a:-1"],
    "GHEALTH_METRICS_LISTEN": ["", "25022", "a:1,b:2", "[::]:65536"],
    "GHEALTH_PROBE_URL": [
        "",
        "gw:15021",
        "ftp://gw/",
        "http://",
        "http://gw:99999/",
        "http://g:0",
        "http://[gw/",
        "http://g w/",
        "http://\x01/",
    ],
    "GHEALTH_PROBE_TIMEOUT": ["", "0", "-1", "3s", "nan", "inf", "3601"],
    "GHEALTH_PROBE_SUCCESS_CODES": ["", "ok", "503", "0-999"],
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
    ],
    "GHEALTH_CACHE_TTL": ["-0.1", "nan", "one"],
    "GHEALTH_WATCH_INTERVAL": ["0"],
    "GHEALTH_ANSWER": ["", "Auto", "both"],
    "GHEALTH_STATUS_CALLERS": [",", "grpc-,", "a b"],
    "GHEALTH_REFLECTION": ["maybe", ""],
    "GHEALTH_DRAIN_DELAY": ["-1"],
    "GHEALTH_SHUTDOWN_GRACE": ["x"],
    "GHEALTH_MAX_WATCHES": ["-1", "1.5"],
    "GHEALTH_LOG_LEVEL": ["loud", "INFO"],
    "GHEALTH_LOG_FORMAT": ["xml", ""],
}


@pytest.mark.parametrize(
    ("variable", "held"), [(name, held) for name, all_ in MISTAKES.items() for held in all_]
)
def test_a_mistake_is_one_line(monkeypatch: pytest.MonkeyPatch, variable: str, held: str) -> None:
    """A bad value is told in one line: the variable, what it holds and what it takes."""
    (line,) = mistakes(monkeypatch, **{variable: held})
    shown = "'***'" if "\\" in held else repr(held[:20])[:-1]
    assert line.startswith(f"{variable} holds {shown}")
    assert ", but takes " in line
    assert "\n" not in line


@pytest.mark.parametrize(
    "held",
    [
        "s3cret",
        '"s3cret"',
        '{"a b": "s3cret"}',
        '{"a": "s3cret\\n"}',
        '{"a": " s3cret"}',
        '{"a": ["s3cret"]}',
        '{"Content-Length": "s3cret"}',
        '{"a": "s3cret", "a": "s3cret"}',
        '{"a": "s3crét"}',
    ],
)
def test_a_mistake_in_headers_shows_nothing(monkeypatch: pytest.MonkeyPatch, held: str) -> None:
    """What is no map of headers is refused without telling the secrets in it."""
    (line,) = mistakes(monkeypatch, GHEALTH_PROBE_HEADERS=held)
    assert line.startswith("GHEALTH_PROBE_HEADERS holds '***', but takes a JSON object")


def test_a_long_value_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line stays a line, whatever the variable holds."""
    (line,) = mistakes(monkeypatch, GHEALTH_CACHE_TTL="x" * 1000 + "\n")
    assert len(line) < 200


def test_all_mistakes_are_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A person mends everything in one round."""
    lines = mistakes(
        monkeypatch,
        GHEALTH_CACHE_TTL="x",
        GHEALTH_PROBE_TIMEOUT="0",
        GHEALTH_PROBE_TIMOUT="3",
        GHEALTH_PROBE_HEADERS="[",
    )
    assert [line.split()[0] for line in lines] == [
        "GHEALTH_PROBE_TIMOUT",
        "GHEALTH_PROBE_TIMEOUT",
        "GHEALTH_PROBE_HEADERS",
        "GHEALTH_CACHE_TTL",
    ]


def test_a_misspelt_name_is_a_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    """An unknown name is refused, with the nearest real one where there is one."""
    lines = mistakes(monkeypatch, GHEALTH_PROB_URL="http://s3cret/", GHEALTH_QUUX="1")
    assert lines == (
        "GHEALTH_PROB_URL is no setting: did you mean GHEALTH_PROBE_URL?",
        "GHEALTH_QUUX is no setting: 'ghealth settings' lists them all",
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
        ("GHEALTH_METRICS_SERVICE_HOST", "10.0.0.1"),
        ("GHEALTH_METRICS_PORT_9090_TCP_ADDR", "10.0.0.1"),
    ],
)
def test_service_links_are_ignored(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    """What Kubernetes injects for Services called ghealth or ghealth-x is no mistake."""
    assert isinstance(loaded(monkeypatch, **{name: value}), Settings)


def test_a_plain_port_points_to_listen(monkeypatch: pytest.MonkeyPatch) -> None:
    """GHEALTH_PORT with a number was written by a person."""
    assert mistakes(monkeypatch, GHEALTH_PORT="8080") == (
        "GHEALTH_PORT is no setting: the port belongs into GHEALTH_LISTEN, such as [::]:25021",
    )


def test_other_programs_variables_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only GHEALTH_* is ours: a .env file's or another program's names are not."""
    assert isinstance(loaded(monkeypatch, LISTEN="x", GHEALTHY="1"), Settings)


SECRET_URL = "http://me:s3cret@gw/ready?token=s3cret"


def test_secrets_are_masked_wherever_settings_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """Header values, user info and queries of URLs show as ***."""
    found = settings(
        monkeypatch,
        PROBE_URL=SECRET_URL,
        SERVICES=json.dumps({"a": SECRET_URL}),
        PROBE_HEADERS='{"Authorization": "s3cret"}',
    )
    assert found.changed() == {
        "GHEALTH_PROBE_URL": "http://***@gw/ready?***",
        "GHEALTH_SERVICES": '{"a": "http://***@gw/ready?***"}',
        "GHEALTH_PROBE_HEADERS": '{"Authorization": "***"}',
    }


@pytest.mark.parametrize(
    ("variable", "held"),
    [
        ("PROBE_URL", "htp://me:s3cret@gw/ready?token=s3cret"),
        ("PROBE_URL", "http://me:pa/s3cret@gw/"),
        ("PROBE_URL", "http://me:pa s3cret@gw:x/"),
        ("PROBE_URL", "http://me@s3cret@gw:x/"),
        ("PROBE_URL", "me:s3cret@gw/ready"),
        ("PROBE_URL", "http:/me:s3cret@gw/ready"),
        ("PROBE_URL", "http://gw:x/?token=a s3cret"),
        ("PROBE_URL", "http://gw:x/?token=a@s3cret"),
        ("SERVICES", '{"liveness": "http://me:s3cret@gw/"}'),
        ("SERVICES", '{"liveness": "http:\\/\\/me:s3cret@gw"}'),
        ("SERVICES", '{"liveness": "http://me:s3\\"s3cret@gw"}'),
        ("SERVICES", '{"liveness": "http://gw/?s3cret"}'),
    ],
)
def test_secrets_are_masked_in_mistakes_too(
    monkeypatch: pytest.MonkeyPatch, variable: str, held: str
) -> None:
    """A URL that is none may still hold a password, wherever a typing mistake put it."""
    (line,) = mistakes(monkeypatch, **{f"GHEALTH_{variable}": held})
    assert "s3cret" not in line
    assert "***" in line


def test_an_extra_that_is_missing_is_told_with_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """METRICS_LISTEN without its packages is one line that says what to install."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    (line,) = mistakes(monkeypatch, GHEALTH_METRICS_LISTEN="[::]:25022")
    assert line.endswith("are not installed: pip install 'ghealth[metrics]'")

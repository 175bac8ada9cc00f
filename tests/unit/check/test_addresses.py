import re

import pytest

from ghealth.address import Address
from ghealth.check.addresses import Server, SettingsError, own_server


@pytest.mark.parametrize(
    ("text", "address", "path"),
    [
        ("a.b.:1", Address("a.b.", 1), ""),
        (":1", Address("127.0.0.1", 1), ""),
        ("0.0.0.0:1", Address("127.0.0.1", 1), ""),
        ("[::]:1", Address("127.0.0.1", 1), ""),
        ("[::1]:1", Address("::1", 1), ""),
        ("[fe80::1%a]:1", Address("fe80::1%a", 1), ""),
        ("[127.0.0.1]:1", Address("127.0.0.1", 1), ""),
        ("dns:///a:1", Address("a", 1), ""),
        ("passthrough:///a:1", Address("a", 1), ""),
        ("unix:a", None, "a"),
        ("unix:/a b%", None, "/a b%"),
        ("unix:///a", None, "/a"),
        ("unix-abstract:a", None, "\0a"),
    ],
)
def test_addresses(text: str, address: Address | None, path: str) -> None:
    """The forms of an address that grpc-health-probe knows; a socket's host is localhost."""
    server = Server.parse(text)
    assert server == Server(text, address, path)
    assert str(server) == text
    assert server.host == ("localhost" if address is None else address.host)
    assert server.authority == ("localhost" if address is None else str(address))


TOO_LONG = f"unix:/{'a' * 107}", "the path has more than 107 bytes"


@pytest.mark.parametrize(("text", "hint"), [TOO_LONG, ("a:1 ", "there is white space around it")])
def test_texts_that_are_not_addresses(text: str, hint: str) -> None:
    """A text that no client can connect to has a hint."""
    with pytest.raises(ValueError, match=hint):
        Server.parse(text)


HINT = "expected comma-separated host:port, such as [::]:25021, or off (a port alone is written :1)"
LISTEN, TLS_LISTEN = "GHEALTH_LISTEN", "GHEALTH_TLS_LISTEN"


@pytest.mark.parametrize(
    ("settings", "tls", "own"),
    [
        ({}, False, ("127.0.0.1:25021", False)),
        ({LISTEN: "[::]:1"}, False, ("127.0.0.1:1", False)),
        ({LISTEN: " "}, False, ("127.0.0.1:25021", False)),
        ({"ghealth_Listen": "0.0.0.0:1\n"}, False, ("127.0.0.1:1", False)),
        ({LISTEN: "[::1]:1, 127.0.0.1:2"}, False, ("[::1]:1", False)),
        ({LISTEN: "127.0.0.1:0,127.0.0.1:2"}, False, ("127.0.0.1:2", False)),
        ({LISTEN: "10.0.0.1:1"}, False, ("10.0.0.1:1", False)),
        ({LISTEN: "Off", TLS_LISTEN: "[::]:2"}, False, ("127.0.0.1:2", True)),
        ({LISTEN: "[::]:1", TLS_LISTEN: "[::]:2"}, False, ("127.0.0.1:1", False)),
        ({LISTEN: "[::]:1", TLS_LISTEN: "[::]:2"}, True, ("127.0.0.1:2", True)),
        ({"GHEALTH_CACHE_TTL": "x", "GHEALTH_LISTEM": "x"}, False, ("127.0.0.1:25021", False)),
    ],
)
def test_the_own_server(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, str], tls: bool, own: tuple[str, bool]
) -> None:
    """The settings name it, whatever the case of their names; mistakes in others do not matter."""
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    server, by_tls = own_server(tls=tls)
    assert (str(server), by_tls) == own


TWICE = "GHEALTH_LISTEN and ghealth_listen: the same setting"


@pytest.mark.parametrize(
    ("settings", "tls", "mistake"),
    [
        ({LISTEN: "[::]:0"}, False, "GHEALTH_LISTEN has only port 0: --addr is needed"),
        ({LISTEN: "[::]:1"}, True, "GHEALTH_TLS_LISTEN is off: --addr is needed"),
        ({LISTEN: "off"}, False, "GHEALTH_TLS_LISTEN is off: --addr is needed"),
        ({LISTEN: "1"}, False, f"GHEALTH_LISTEN: invalid value '1'; {HINT}"),
        ({LISTEN: ":1", LISTEN.lower(): ":1"}, False, f"{TWICE}; expected one of them"),
    ],
)
def test_settings_that_name_no_server(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, str], tls: bool, mistake: str
) -> None:
    """A mistake in one of the two variables, or a port that is not known, is one line."""
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=f"^{re.escape(mistake)}$"):
        own_server(tls=tls)

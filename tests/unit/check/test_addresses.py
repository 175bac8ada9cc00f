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


TWICE = "GHEALTH_LISTEN and ghealth_listen: the same setting"


@pytest.mark.parametrize(
    ("settings", "tls", "own"),
    [
        ({}, False, "127.0.0.1:25021"),
        ({LISTEN: "[::]:1"}, False, "127.0.0.1:1"),
        ({LISTEN: " "}, False, "127.0.0.1:25021"),
        ({"ghealth_Listen": "0.0.0.0:1\n"}, False, "127.0.0.1:1"),
        ({LISTEN: "[::1]:1, 127.0.0.1:2"}, False, "[::1]:1"),
        ({LISTEN: "127.0.0.1:0,127.0.0.1:2"}, False, "127.0.0.1:2"),
        ({LISTEN: "10.0.0.1:1"}, False, "10.0.0.1:1"),
        ({LISTEN: "Off", TLS_LISTEN: "[::]:2"}, False, "127.0.0.1:2 by TLS"),
        ({LISTEN: "[::]:1", TLS_LISTEN: "[::]:2"}, False, "127.0.0.1:1"),
        ({LISTEN: "[::]:1", TLS_LISTEN: "[::]:2"}, True, "127.0.0.1:2 by TLS"),
        ({"GHEALTH_CACHE_TTL": "x", "GHEALTH_LISTEM": "x"}, False, "127.0.0.1:25021"),
        ({LISTEN: "[::]:0"}, False, "GHEALTH_LISTEN has only port 0: --addr is needed"),
        ({LISTEN: "[::]:1"}, True, "GHEALTH_TLS_LISTEN is off: --addr is needed"),
        ({LISTEN: "off"}, False, "GHEALTH_TLS_LISTEN is off: --addr is needed"),
        ({LISTEN: "1"}, False, f"GHEALTH_LISTEN: invalid value '1'; {HINT}"),
        ({LISTEN: ":1", LISTEN.lower(): ":1"}, False, f"{TWICE}; expected one of them"),
    ],
)
def test_the_own_server(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, str], tls: bool, own: str
) -> None:
    """Two settings name it, in any case; a mistake in one of them is one line, others are not."""
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    try:
        server, by_tls = own_server(tls=tls)
        found = f"{server} by TLS" if by_tls else str(server)
    except SettingsError as error:
        found = str(error)
    assert found == own

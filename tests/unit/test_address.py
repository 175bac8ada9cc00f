import re

import pytest

from ghealth.address import Address, listen_addresses


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:25021", Address("127.0.0.1", 25021)),
        ("localhost:65535", Address("localhost", 65535)),
        ("pod-1.ns.svc.cluster.local.:80", Address("pod-1.ns.svc.cluster.local.", 80)),
        ("_grpc._tcp.gw:1", Address("_grpc._tcp.gw", 1)),
        ("[::]:0", Address("::", 0)),
        ("[::1]:1", Address("::1", 1)),
        ("[fe80::1%lo]:1", Address("fe80::1%lo", 1)),
        (" [2001:db8::1]:80\n", Address("2001:db8::1", 80)),
    ],
)
def test_an_address_is_a_host_and_a_port(text: str, address: Address) -> None:
    """What is parsed is shown as the text that it came from."""
    assert Address.parse(text) == address
    assert str(address) == text.strip()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (":25021", "[::]:25021"),
        ("*:25021", "[::]:25021"),
        ("[0:0::0]:25021", "[::]:25021"),
        ("[2001:DB8:0::1]:1", "[2001:db8::1]:1"),
        ("[::ffff:127.0.0.1]:1", "127.0.0.1:1"),
        ("[::ffff:0.0.0.0]:1", "0.0.0.0:1"),
        ("a:00080", "a:80"),
        ("LocalHost:1", "localhost:1"),
    ],
)
def test_the_same_address_may_be_written_in_several_ways(text: str, shown: str) -> None:
    """No host is every interface, and an IPv4 address in IPv6's form is one of IPv4."""
    assert str(Address.parse(text)) == shown


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("", "no port"),
        ("localhost", "no port"),
        ("25021", "a port alone is written :25021"),
        ("[::1]", "no port"),
        ("::1", "an IPv6 address needs brackets"),
        ("::1:25021", "an IPv6 address needs brackets"),
        *(
            (f"a:{port}", "a port is a number from 0 to 65535")
            for port in ("", "-1", "65536", "grpc", "\u0661")
        ),
        ("a b:1", "'a b' is not a host name"),
        ("a..b:1", "'a..b' is not a host name"),
        ("x" * 64 + ":1", f"'{'x' * 64}' is not a host name"),
        ("[a:1", "'[a' is not a host name"),
        ("http://a:1", "an address is host:port only"),
        ("dns:///a:1", "an address is host:port only"),
        ("unix:/tmp/socket", "a unix: socket could be taken over by another process"),
        ("[1:2]:80", "'1:2' is not an IPv6 address"),
        ("[127.0.0.1]:80", "'127.0.0.1' is not an IPv6 address"),
        ("[:::]:1", "':::' is not an IPv6 address"),
        ("[fe80::1]:1", "needs its interface, such as [fe80::1%eth0]"),
        ("[fe80::1%]:1", "'fe80::1%' is not an IPv6 address"),
    ],
)
def test_other_texts_are_refused_with_a_hint(text: str, hint: str) -> None:
    """An address without a port, without brackets or with something else is a mistake."""
    with pytest.raises(ValueError, match=re.escape(hint)):
        Address.parse(text)


def test_addresses_to_listen_on_are_a_list() -> None:
    """They are separated by commas."""
    found = listen_addresses("127.0.0.1:1, [::]:2,localhost:3,*:4")
    assert list(map(str, found)) == ["127.0.0.1:1", "[::]:2", "localhost:3", "[::]:4"]


@pytest.mark.parametrize("text", ["off", "OFF"])
def test_off_is_no_address(text: str) -> None:
    """It is accepted in any case."""
    assert listen_addresses(text) == ()


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("gw.example:1", "gw.example is not an IP address, and names are not looked up"),
        ("127.1:1", "127.1 is not an IP address, and names are not looked up"),
        ("localhost.:1", "localhost. is not an IP address, and names are not looked up"),
        (":1,off", "no port"),
        (":1,", "no port"),
        *(
            (text, "multicast and broadcast addresses cannot be connected to")
            for text in ("224.0.0.1:1", "[ff02::1%lo]:1", "255.255.255.255:1")
        ),
    ],
)
def test_other_addresses_cannot_be_listened_on(text: str, hint: str) -> None:
    """Nothing is looked up, and clients can connect to every address."""
    with pytest.raises(ValueError, match=f"^{re.escape(hint)}$"):
        listen_addresses(text)

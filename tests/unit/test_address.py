import re

import pytest

from ghealth.address import Address, listen_addresses

ADDRESSES = (
    "127.0.0.1:25021 localhost:65535 pod-1.ns.svc.cluster.local.:80 _grpc._tcp.gw:1 [::]:0 "
    "[::1]:1 [fe80::1%lo]:1"
)


@pytest.mark.parametrize("text", ADDRESSES.split())
def test_an_address_is_a_host_and_a_port(text: str) -> None:
    """What is parsed is shown as the text that it came from."""
    assert str(Address.parse(text)) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (" :25021\n", "[::]:25021"),
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


HINTS = {
    "no port": ["", "localhost", "[::1]"],
    "a port alone is written :25021": ["25021"],
    "an IPv6 address needs brackets": ["::1", "::1:25021"],
    "a port is a number from 0 to 65535": ["a:", "a:-1", "a:65536", "a:grpc", "a:\u0661"],
    "is not a host name": ["a b:1", "a..b:1", "x" * 64 + ":1", "[a:1"],
    "an address is host:port only": ["http://a:1", "dns:///a:1"],
    "a unix: socket could be taken over by another process": ["unix:/tmp/socket"],
    "is not an IPv6 address": ["[1:2]:80", "[127.0.0.1]:80", "[:::]:1", "[fe80::1%]:1"],
    "needs its interface, such as [fe80::1%eth0]": ["[fe80::1]:1"],
}


@pytest.mark.parametrize(("hint", "text"), [(hint, text) for hint in HINTS for text in HINTS[hint]])
def test_other_texts_are_refused_with_a_hint(hint: str, text: str) -> None:
    """An address without a port, without brackets or with something else is a mistake."""
    with pytest.raises(ValueError, match=f"{re.escape(hint)}$"):
        Address.parse(text)


NOT_LISTENED_ON = {
    "{} is not an IP address, and names are not looked up": ["gw.example", "127.1", "localhost."],
    "multicast and broadcast addresses cannot be connected to": [
        "224.0.0.1",
        "[ff02::1%lo]",
        "255.255.255.255",
    ],
}


@pytest.mark.parametrize(
    ("hint", "host"), [(hint, host) for hint in NOT_LISTENED_ON for host in NOT_LISTENED_ON[hint]]
)
def test_other_addresses_cannot_be_listened_on(hint: str, host: str) -> None:
    """Nothing is looked up, and clients can connect to every address."""
    with pytest.raises(ValueError, match=f"^{re.escape(hint.format(host))}$"):
        listen_addresses(f"{host}:1")

import pytest

from ghealth.address import Address


@pytest.mark.parametrize("text", ["127.0.0.1:25021", "[::]:0", "localhost:65535"])
def test_an_address_reads_as_it_is_written(text: str) -> None:
    """What is parsed renders as the text that it came from."""
    assert str(Address.parse(text)) == text


@pytest.mark.parametrize(
    "text", ["", "localhost", "localhost:", ":1", "a:65536", "a b:1", "a..b:1", "x" * 64 + ":1"]
)
def test_other_texts_are_refused(text: str) -> None:
    """An address without a host, a port, or with something else, is a mistake."""
    with pytest.raises(ValueError, match=f"^{text}$"):
        Address.parse(text)


@pytest.mark.parametrize("text", ["[1:2]:80", "[127.0.0.1]:80", "[:::]:1"])
def test_brackets_hold_an_ipv6_address(text: str) -> None:
    """What is in brackets and no IPv6 address is refused."""
    with pytest.raises(ValueError):  # noqa: PT011 - in the words of ipaddress
        Address.parse(text)

import errno
import logging
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import Mock

import pytest

from ghealth.address import Address
from ghealth.server.listen import ListenError, admin_sockets, bind
from ghealth.settings import Settings


def bound(text: str) -> list[str]:
    """Bind an address on one port, and return the IP addresses."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(one) for one in bind(Address.parse(text))]
        assert len({one.getsockname()[1] for one in sockets}) == 1
        return [one.getsockname()[0] for one in sockets]


def refusal(text: str) -> str:
    """Fail to bind an address, and return why."""
    with pytest.raises(ListenError) as raised:
        bound(text)
    return str(raised.value).removeprefix(f"cannot listen on {text}: ")


@contextmanager
def held(host: str) -> Iterator[int]:
    """Listen on a free port of an IP address."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as listener:
        yield listener.getsockname()[1]


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        (":0", ["::"]),
        ("localhost:0", ["127.0.0.1", "::1"]),
    ],
)
def test_an_address_is_bound(monkeypatch: pytest.MonkeyPatch, text: str, hosts: list[str]) -> None:
    """`localhost` is both loopbacks, with one port; no name is looked up."""
    look_up = Mock(wraps=socket.getaddrinfo)
    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    assert bound(text) == hosts
    assert all(call.kwargs["flags"] == socket.AI_NUMERICHOST for call in look_up.call_args_list)


@pytest.mark.parametrize(
    ("taken", "wanted"),
    [
        ("127.0.0.1", ["127.0.0.1", "0.0.0.0", "[::]", "localhost"]),
        ("::1", ["[::1]", "[::]", "localhost"]),
    ],
)
def test_a_taken_port_is_an_error(taken: str, wanted: list[str]) -> None:
    """Also if only one IP address of a wildcard or of `localhost` has it."""
    with held(taken) as port:
        for host in wanted:
            assert refusal(f"{host}:{port}") == "Address already in use"


def test_an_address_of_another_machine_is_an_error() -> None:
    """The cause is the system's."""
    assert refusal("192.0.2.1:1") == "Cannot assign requested address"
    assert refusal("[fe80::1%gone]:1") == "Name or service not known"


Without = Callable[[int, int], None]


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Without:
    """Make sockets of a family fail."""
    real = socket.socket.bind

    def install(family: int, number: int) -> None:
        def bind(self: socket.socket, place: Any) -> None:
            if self.family == family:
                raise OSError(number, os.strerror(number))
            real(self, place)

        monkeypatch.setattr(socket.socket, "bind", bind)

    return install


@pytest.mark.parametrize("number", [errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL])
def test_a_node_without_ipv6_listens_on_ipv4(without: Without, number: int) -> None:
    """`[::]` is 0.0.0.0, as in gRPC, and `localhost` is 127.0.0.1; `[::1]` is an error."""
    without(socket.AF_INET6, number)
    assert bound("[::]:0") == ["0.0.0.0"]
    assert bound("localhost:0") == ["127.0.0.1"]
    with held("127.0.0.1") as port:
        assert refusal(f"[::]:{port}") == "Address already in use"
    assert refusal("[::1]:1") == os.strerror(number)


def test_a_machine_without_ipv4_listens_on_ipv6(without: Without) -> None:
    """A loopback that is missing is left out."""
    without(socket.AF_INET, errno.EADDRNOTAVAIL)
    assert bound("localhost:0") == ["::1"]


WITHOUT_IT = "no status page and no metrics: "


def admin_ports(**values: str) -> list[socket.socket]:
    return admin_sockets(Settings.model_validate(values))


def test_a_taken_admin_port_is_an_error_only_if_it_was_set(
    without: Without, caplog: pytest.LogCaptureFixture
) -> None:
    """For the default port it is a warning: ghealth serves without it."""
    without(socket.AF_INET, errno.EADDRINUSE)
    why = "cannot listen on 127.0.0.1:25022: Address already in use"
    with pytest.raises(ListenError, match=why):
        admin_ports(admin_listen="127.0.0.1:25022")
    assert admin_ports() == []
    assert caplog.record_tuples == [("ghealth.server.listen", logging.WARNING, WITHOUT_IT + why)]


def test_the_default_admin_port_gives_way(caplog: pytest.LogCaptureFixture) -> None:
    """It does not take the port of LISTEN or TLS_LISTEN, whatever the IP address."""
    assert admin_ports(listen="[::]:25022") == []
    assert caplog.messages == [WITHOUT_IT + "127.0.0.1:25022 has the port of another address"]


def test_an_admin_port_that_was_set_is_bound() -> None:
    """It may have the number of another address's port; `off` opens nothing."""
    assert admin_ports(admin_listen="off") == []
    with held("127.0.0.1") as port:
        (one,) = admin_ports(listen=f"127.0.0.1:{port}", admin_listen=f"[::1]:{port}")
        one.close()

"""Addresses to listen on, as machines have them."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import processes

FORMS = (":0", "*:0", "localhost:0", "[::1]:0", "[0:0::1]:0", "[::ffff:127.0.0.1]:0")


@pytest.fixture(scope="module")
def listening() -> Iterator[processes.Server]:
    """A ghealth that listens on an address of each form."""
    with processes.server(LISTEN=",".join(FORMS)) as ghealth:
        yield ghealth


@pytest.mark.parametrize("text", FORMS)
def test_addresses_of_every_form_are_listened_on(listening: processes.Server, text: str) -> None:
    """Ghealth answers on every form of an IP address, and on `localhost`."""
    port = listening.started["listen"][FORMS.index(text)].rpartition(":")[2]
    addr = f"{'[::1]' if '::1]' in text else '127.0.0.1'}:{port}"
    done = processes.run("check", "--addr", addr, "--service=liveness", *processes.TIMES)
    assert done.returncode == 0


def test_a_link_local_address_has_its_interface() -> None:
    """Without the interface the kernel refuses it, so gRPC gets it too."""
    script = "ip link set lo up && ip -6 address add fe80::1/64 dev lo nodad"
    enter = processes.in_namespaces("--net", script=script)
    with processes.server(*enter, LISTEN="[fe80::1%lo]:0") as ghealth:
        assert ghealth.started["listen"] == [f"[fe80::1%lo]:{ghealth.port}"]


@pytest.mark.parametrize("text", ["[::]:25021", "localhost:0"])
def test_a_node_without_ipv6(tmp_path: Path, text: str) -> None:
    """`[::]` and `localhost` are IPv4 there, though /etc/hosts often has ::1 all the same."""
    hosts = tmp_path / "hosts"
    hosts.write_text("127.0.0.1 localhost\n::1 localhost\n")
    ipv4_alone = "echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6"
    script = f"ip link set lo up && mount --bind {hosts} /etc/hosts && {ipv4_alone}"
    enter = processes.in_namespaces("--net", "--mount", script=script)
    with processes.server(*enter, LISTEN=text) as ghealth:
        assert ghealth.check_inside("--service=liveness").stdout == "status: SERVING\n"


def test_without_a_loopback_it_serves() -> None:
    """A network namespace whose loopback is down has the default addresses."""
    enter = processes.in_namespaces("--net")
    with processes.server(*enter, LISTEN="", ADMIN_LISTEN="") as ghealth:
        assert ghealth.started["listen"] == ["[::]:25021"]

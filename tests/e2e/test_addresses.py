"""Addresses to listen on, as machines have them."""

from pathlib import Path

import pytest

from tests.support import processes


@pytest.mark.parametrize(
    "text", [":0", "*:0", "localhost:0", "[::1]:0", "[0:0::1]:0", "[::ffff:127.0.0.1]:0"]
)
def test_addresses_of_every_form_are_listened_on(text: str) -> None:
    """Ghealth answers on every form of an IP address, and on `localhost`."""
    with processes.server(LISTEN=text) as ghealth:
        loopback = "[::1]" if "::1]" in text else "127.0.0.1"
        addr = f"--addr={loopback}:{ghealth.port}"
        done = processes.run("check", addr, "--service=liveness", *processes.TIMES)
    assert done.returncode == 0


def test_a_link_local_address_has_its_interface() -> None:
    """Without the interface the kernel refuses it, so gRPC gets it too."""
    script = "ip link set lo up && ip -6 address add fe80::1/64 dev lo nodad"
    enter = processes.in_namespaces("--net", script=script)
    with processes.server(*enter, LISTEN="[fe80::1%lo]:0") as ghealth:
        assert ghealth.started["listen"] == [f"[fe80::1%lo]:{ghealth.port}"]


def test_without_ipv6_localhost_is_its_ipv4_address(tmp_path: Path) -> None:
    """On nodes without IPv6, /etc/hosts often has ::1 for localhost all the same."""
    hosts = tmp_path / "hosts"
    hosts.write_text("127.0.0.1 localhost\n::1 localhost\n")
    script = (
        f"ip link set lo up && mount --bind {hosts} /etc/hosts && "
        "echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6"
    )
    enter = processes.in_namespaces("--net", "--mount", script=script)
    with processes.server(*enter, LISTEN="localhost:0") as ghealth:
        assert ghealth.started["listen"] == [f"localhost:{ghealth.port}"]


def test_without_a_loopback_it_serves() -> None:
    """A network namespace whose loopback is down has the default addresses."""
    enter = processes.in_namespaces("--net")
    with processes.server(*enter, LISTEN="", ADMIN_LISTEN="") as ghealth:
        assert ghealth.started["listen"] == ["[::]:25021"]

"""Names, sysctls, messages, the wire: what needs no kernel to be right."""

import os
import socket
import struct
import time
from pathlib import Path

import pytest

from cni import caller, host, route, state, sysctl, wire
from cni.errors import CniError


def test_names_on_the_host_are_stable_distinct_and_short() -> None:
    names = {host.host_name(n, c, i) for n in ("a", "b") for c in ("c1", "c2") for i in ("eth0", "eth1")}
    assert len(names) == 8 and all(len(each) == 15 for each in names)
    assert host.host_name("a", "c1", "eth0") in names
    assert len(host.alias("n" * 250, "c" * 200, "e" * 15).encode()) <= 255


def test_a_link_belongs_to_a_network_by_its_alias() -> None:
    def link(name: str, alias: str, kind: str = "veth") -> route.Link:
        return route.Link(7, name, "", 1500, 0, 0, kind, alias, 0, 0)

    name = host.host_name("a", "c1", "eth0")
    assert host.belongs(link(name, host.alias("a", "c1", "eth0")), "a")
    assert host.belongs(link(name, ""), "a")  # its ADD was cut short
    assert not host.belongs(link(name, host.alias("b", "c1", "eth0")), "a")
    assert not host.belongs(link(name, "", "dummy"), "a") and not host.belongs(link("veth0", ""), "a")


@pytest.mark.parametrize(
    ("key", "name", "path"),
    [
        ("net.ipv4.conf.IFNAME.arp_filter", "net.ipv4.conf.IFNAME.arp_filter", "ipv4/conf/e.1/arp_filter"),
        ("net/ipv4/conf/IFNAME/arp_filter", "net.ipv4.conf.IFNAME.arp_filter", "ipv4/conf/e.1/arp_filter"),
        ("net/ipv4/conf/eth0.93/arp_filter", "net.ipv4.conf.eth0/93.arp_filter", "ipv4/conf/eth0.93/arp_filter"),
        ("net.ipv4.conf.eth0/93.arp_filter", "net.ipv4.conf.eth0/93.arp_filter", "ipv4/conf/eth0.93/arp_filter"),
        ("net.core.somaxconn", "net.core.somaxconn", "core/somaxconn"),
    ],
)
def test_sysctl_names_become_paths(key: str, name: str, path: str) -> None:
    assert sysctl.parse({key: "1"}, "e.1") == [sysctl.Sysctl(name, path, "1")]


@pytest.mark.parametrize(
    "key", ["", ".", "net", "vm.x", "net..x", "net/../x", "net/./x", "/net/x", "net.x\0", "net/", "net.ipv4.//.a"]
)
def test_sysctl_names_that_lead_elsewhere(key: str) -> None:
    with pytest.raises(CniError) as caught:
        sysctl.parse({key: "1"}, "eth0")
    assert caught.value.code == 7


def test_the_allow_list_decides(tmp_path: Path) -> None:
    wanted = sysctl.parse({"net.core.somaxconn": "1"}, "eth0")
    place = tmp_path / sysctl.ALLOW_LIST
    root = os.open(tmp_path, os.O_PATH)
    try:
        sysctl.permit(wanted, root)  # no list: all
        place.parent.mkdir(parents=True)
        for text, code in (("^net\\.core\\.somaxconn$\n", 0), ("^net\\.ipv4\\.\n", 103), ("", 103), ("(\n", 5)):
            place.write_text(text)
            assert refused(wanted, root) == code
        place.unlink()
        place.symlink_to("/dev/null")
        assert refused(wanted, root) == 5
    finally:
        os.close(root)


def refused(wanted: list[sysctl.Sysctl], root: int) -> int:
    try:
        sysctl.permit(wanted, root)
    except CniError as error:
        return error.code
    return 0


@pytest.mark.parametrize("path", ["", "x", "/run/cnix", "/run/cni/../etc", "/", "/etc"])
def test_a_data_dir_elsewhere_is_refused(path: str) -> None:
    with pytest.raises(CniError):
        state.Folder(-1, path, ("/run/cni",))


def test_vlans_are_packed_as_ranges() -> None:
    _, _, body = route.add_vlans(7, 93, [1, 2, 3, 9])
    infos = [struct.pack("=HH", flags, vlan) for flags, vlan in ((6, 93), (8, 1), (16, 3), (0, 9))]
    assert all(each in body for each in infos) and struct.pack("=HH", 0, 2) not in body[40:]


def test_names_of_devices() -> None:
    assert not caller.interface_fault("eth0") and not caller.interface_fault("br-1.93")
    assert all(caller.interface_fault(each) for each in ("", "a/b", "a:b", "a b", ".", "..", "x" * 16, "a\n", "a\0"))


def pair() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)


def test_a_request_arrives_as_it_was_sent_with_its_descriptor() -> None:
    here, there = pair()
    with here, there, Path("/proc/self/ns/net").open() as namespace:
        sent = wire.Request(
            "cnv-bridge", {"CNI_COMMAND": "ADD", "CNI_ARGS": "A=B;C=é"}, b"{}\0\xff", namespace.fileno()
        )
        wire.send_request(here, sent)
        got = wire.receive_request(there, time.monotonic() + 5)
        assert (got.plugin, got.environment, got.stdin) == (sent.plugin, sent.environment, sent.stdin)
        assert os.path.samestat(os.fstat(got.netns), os.fstat(namespace.fileno())) and got.netns != namespace.fileno()
        got.close()
        wire.send_answer(there, wire.Answer(3, b"out", b"err"))
        assert wire.receive_answer(here, 5) == wire.Answer(3, b"out", b"err")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"HLC1",
        b"nonsense more",
        wire.REQUEST.pack(wire.MAGIC, wire.ENVIRONMENT_LIMIT + 1, 0),
        wire.REQUEST.pack(wire.MAGIC, 0, wire.INPUT_LIMIT + 1),
        wire.REQUEST.pack(wire.MAGIC, 2, 0) + b"a\0surplus",
        wire.REQUEST.pack(wire.MAGIC, 1, 0) + b"a",
        wire.REQUEST.pack(wire.MAGIC, 7, 0) + b"a\0PATH\0",
    ],
)
def test_bytes_that_are_no_request(data: bytes) -> None:
    here, there = pair()
    with there:
        here.sendall(data)
        here.close()
        with pytest.raises(wire.WireError):
            wire.receive_request(there, time.monotonic() + 5)


def test_descriptors_nobody_asked_for_are_closed() -> None:
    here, there = pair()
    before = len(list(Path("/proc/self/fd").iterdir()))
    with here, there:
        socket.send_fds(here, [wire.REQUEST.pack(wire.MAGIC, 2, 0)], [0, 1])
        with pytest.raises(wire.WireError):
            wire.receive_request(there, time.monotonic() + 5)
    assert len(list(Path("/proc/self/fd").iterdir())) == before - 2

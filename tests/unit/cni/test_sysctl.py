"""Sysctl names, paths and the allow list."""

import os
from pathlib import Path

import pytest

from cni import sysctl
from cni.errors import CniError


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
def test_sysctl_names_outside_net_are_rejected(key: str) -> None:
    with pytest.raises(CniError) as caught:
        sysctl.parse({key: "1"}, "eth0")
    assert caught.value.code == 7


def test_allow_list_restricts_sysctls(tmp_path: Path) -> None:
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

"""Names and aliases of devices on the host."""

from cni import host
from kit.netlink import route


def test_names_on_the_host_are_stable_distinct_and_short() -> None:
    names = {host.host_name(n, c, i) for n in ("a", "b") for c in ("c1", "c2") for i in ("eth0", "eth1")}
    assert len(names) == 8 and all(len(each) == 15 for each in names)
    assert host.host_name("a", "c1", "eth0") in names
    assert len(host.alias("n" * 250, "c" * 200, "e" * 15).encode()) <= 255


def test_a_link_belongs_to_a_network_by_its_alias() -> None:
    def link(name: str, alias: str, kind: str = "veth") -> route.Link:
        return route.Link(7, name, "", 1500, 0, 0, kind, alias, 0)

    name = host.host_name("a", "c1", "eth0")
    assert host.belongs(link(name, host.alias("a", "c1", "eth0")), "a")
    assert host.belongs(link(name, ""), "a")  # its ADD was cut short
    assert not host.belongs(link(name, host.alias("b", "c1", "eth0")), "a")
    assert not host.belongs(link(name, "", "dummy"), "a") and not host.belongs(link("veth0", ""), "a")

"""cnv-bridge with addresses by DHCP: the real `dhcp` plugin and its daemon, and a real server on the network."""

import contextlib
import socket
import subprocess
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

from cni.host import host_name
from tests.node.cnilab import PLUGINS, Lab, Space, bridge_conf, client, lab
from tests.waiting import wait_for

pytestmark = pytest.mark.node
__all__ = ["client", "lab"]  # fixtures
OUTSIDE = host_name("net", "c1", "eth0")
POOL = {f"10.9.7.{last}" for last in range(100, 120)}
UPLINK = {"br1", "uplink"}
"""What is the network's own on the node, attachments or not."""


class Lease(NamedTuple):
    """A line of dnsmasq's lease file."""

    expires: str
    mac: str
    address: str
    host: str
    client: str


class Network:
    """The bridge br1 with an uplink to a DHCP server in its own namespace, and the plugin's daemon on the node."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.socket = lab.folder / "dhcp.sock"
        self._file = lab.folder / "leases"
        self._server_space = lab.container()
        lab.node.run(
            "ip link add br1 type bridge; ip link set br1 up; ip link add uplink type veth peer name eth0 "
            f"netns {self._server_space.path}; ip link set uplink master br1 up"
        )
        self._server_space.run("ip addr add 10.9.7.1/24 dev eth0; ip link set eth0 up")
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def serve(self) -> None:
        """Starts the DHCP server; it answers from the moment that its socket is there."""
        # Without --no-ping every offer takes three seconds: the server first pings the address.
        self._start(
            "server", self._server_space,
            "dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--pid-file=", "--port=0", "--user=root",
            "--log-facility=-", "--interface=eth0", "--bind-interfaces", "--no-ping", "--dhcp-authoritative",
            "--dhcp-range=10.9.7.100,10.9.7.119,255.255.255.0,10m", "--dhcp-option=option:router,10.9.7.254",
            f"--dhcp-leasefile={self._file}",
        )  # fmt: skip
        # Port 67, in the form of /proc/net/udp.
        wait_for(lambda: ":0043 " in self._server_space.run("cat /proc/net/udp"), "the DHCP server to listen")

    def start_daemon(self) -> None:
        """Starts the plugin's daemon, which keeps the leases."""
        self.socket.unlink(missing_ok=True)  # the daemon leaves it behind, and then has no place to listen
        self._start("daemon", self.lab.node, f"{PLUGINS}/dhcp", "daemon", "-socketpath", str(self.socket))
        wait_for(self._daemon_listens, "the daemon of the dhcp plugin to listen")

    def end(self, name: str) -> None:
        """Ends a program that was started."""
        process = self._running.pop(name)
        process.terminate()
        process.wait(15)

    def leases(self) -> list[Lease]:
        """The leases of the server."""
        text = self._file.read_text() if self._file.exists() else ""
        return [Lease(*line.split()) for line in text.splitlines()]

    def log(self, name: str) -> bytes:
        """The log of a started program."""
        return (self.lab.folder / f"{name}.log").read_bytes()

    def conf(self, **fields: Any) -> dict[str, Any]:
        """The configuration of a bridge whose containers ask this network."""
        provide = [{"option": "host-name", "fromArg": "K8S_POD_NAME"}]
        return bridge_conf(ipam={"type": "dhcp", "daemonSocketPath": str(self.socket), "provide": provide}, **fields)

    def close(self) -> None:
        for name in list(self._running):
            self.end(name)

    def _daemon_listens(self) -> bool:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as one:
            one.connect(str(self.socket))
            return True
        return False

    def _start(self, name: str, where: Space, *command: str) -> None:
        with (self.lab.folder / f"{name}.log").open("ab") as log:
            self._running[name] = subprocess.Popen(
                ["nsenter", f"--net={where.path}", *command], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )


@pytest.fixture
def network(lab: Lab) -> Iterator[Network]:
    """A network with its DHCP server, and a node with the plugin's daemon."""
    found = Network(lab)
    with contextlib.closing(found):
        found.serve()
        found.start_daemon()
        yield found


def test_dhcp_address_is_leased_until_del(lab: Lab, network: Network) -> None:
    where, conf = lab.container(), network.conf(macspoofchk=True)
    result = lab.call("cnv-bridge", "ADD", conf, where, CNI_ARGS="IgnoreUnknown=1;K8S_POD_NAME=one")
    (ip,) = result["ips"]
    address = ip["address"].removesuffix("/24")
    assert address in POOL and (ip["gateway"], ip["interface"]) == ("10.9.7.254", 2)
    assert result["routes"] == [{"dst": "0.0.0.0/0", "gw": "10.9.7.254"}]
    assert f"inet {address}/24 " in where.run("ip -4 addr show eth0")
    assert "default via 10.9.7.254 dev eth0" in where.run("ip route")
    (lease,) = network.leases()
    assert (lease.address, lease.mac, lease.host) == (address, result["interfaces"][2]["mac"], "one")
    assert where.reaches("10.9.7.1")

    checked = conf | {"prevResult": result}
    lab.call("cnv-bridge", "CHECK", checked, where)
    # An older plugin asks for the same address again then: only the time may be another.
    assert [each._replace(expires=lease.expires) for each in network.leases()] == [lease]
    where.run(f"ip addr del {address}/24 dev eth0")
    error = lab.refusal("cnv-bridge", "CHECK", checked, where)
    assert error["code"] == 101 and address in error["msg"]

    lab.call("cnv-bridge", "DEL", checked, where)
    wait_for(lambda: not network.leases(), "the lease to be given back")
    lab.call("cnv-bridge", "DEL", checked, where)
    lab.clean(but=UPLINK)
    assert set(where.links()) == {"lo"}


def test_dhcp_plugin_older_than_config_version_works(lab: Lab, network: Network) -> None:
    where, conf = lab.container(), network.conf(cniVersion="1.1.0")
    result = lab.call("cnv-bridge", "ADD", conf, where)
    assert result["cniVersion"] == "1.1.0" and result["ips"][0]["address"].removesuffix("/24") in POOL
    lab.call("cnv-bridge", "CHECK", conf | {"prevResult": result}, where)
    lab.call("cnv-bridge", "STATUS", conf, None)
    lab.call("cnv-bridge", "GC", conf | {"cni.dev/valid-attachments": []}, None)
    lab.clean(but=UPLINK)


def test_add_failing_after_lease_releases_lease(lab: Lab, network: Network) -> None:
    lab.node.run("ip addr add 10.9.8.1/24 dev br1")
    where = lab.container()
    error = lab.refusal("cnv-bridge", "ADD", network.conf(isGateway=True), where)
    assert "10.9.8.1" in error["msg"] and "10.9.7.254" in error["msg"]
    wait_for(lambda: b"DHCPRELEASE" in network.log("server"), "the lease to be given back")
    assert not network.leases() and b"DHCPACK" in network.log("server")
    lab.clean(but=UPLINK)
    assert set(where.links()) == {"lo"}


def test_del_after_namespace_removal_releases_lease(lab: Lab, network: Network) -> None:
    # The plugin's daemon is in the namespace for as long as it keeps the lease, and so the interface is there.
    where = Space()
    lab.call("cnv-bridge", "ADD", network.conf(), where)
    where.close()
    assert network.leases()
    lab.call("cnv-bridge", "DEL", network.conf(), None, CNI_NETNS="/run/netns/gone")
    wait_for(lambda: not network.leases(), "the lease to be given back")
    lab.clean(but=UPLINK)


def test_calls_without_dhcp_daemon_fail_and_leave_nothing(lab: Lab, network: Network) -> None:
    there, where, conf = lab.container(), lab.container(), network.conf()
    lab.call("cnv-bridge", "ADD", conf, there)
    network.end("daemon")
    for command, container, space in (("ADD", "c2", where), ("DEL", "c1", there)):
        error = lab.refusal("cnv-bridge", command, conf, space, CNI_CONTAINERID=container)
        assert error["msg"].startswith("IPAM plugin dhcp: ") and str(network.socket) in error["msg"]
        assert set(space.links()) == {"lo"}
    lab.clean(but=UPLINK)
    network.start_daemon()  # the runtime asks again until DEL succeeds
    lab.call("cnv-bridge", "DEL", conf, there)
    lab.call("cnv-bridge", "ADD", conf, where, CNI_CONTAINERID="c2")
    lab.call("cnv-bridge", "DEL", conf, where, CNI_CONTAINERID="c2")

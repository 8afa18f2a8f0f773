"""Addresses and links of the cluster.

    the machine                          the fabric: a network namespace without an uplink
    ───────────                          ─────────────────────────────────────────────────
    hl-XXXXXX .254  ── veth ──────────►  br0 .1 (API server, etcd)   br1 (no address)
    routes to pods and services            │       │                   │       │
    via the nodes, else unreachable      node1   node2               node1   node2
                                         eth0.11 eth0.12             eth1    eth1

The machine is one more host on br0, never a gateway: no namespace has a route through it, so no traffic leaves.
"""

from __future__ import annotations

import ipaddress
import json
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster.console import ClusterError

FIRST_BLOCK = 77
"""The second byte of the first 10.N.0.0/16 that is tried."""

AFRESH = "run 'python -m cluster down', then up"

LAST = "4278198272"
"""A route metric that any other route beats."""

Network = ipaddress.IPv4Network


@dataclass(frozen=True)
class AddressPlan:
    """All ranges of one cluster, from one /16."""

    block: Network

    @property
    def nodes(self) -> Network:
        """The range of br0."""
        return self._cut(0, 24)

    @property
    def pods(self) -> Network:
        """The range of all pods; each node has a /24 of it."""
        return self._cut(16, 20)

    @property
    def services(self) -> Network:
        """The range of Service addresses."""
        return self._cut(128, 18)

    @property
    def api(self) -> str:
        """The API server's address."""
        return str(self.nodes[1])

    @property
    def machine(self) -> str:
        """The machine's own address on br0."""
        return str(self.nodes[254])

    @property
    def dns(self) -> str:
        """The pods' nameserver. It does not answer unless a DNS server is deployed."""
        return str(self.services[10])

    @property
    def kubernetes_service(self) -> str:
        """The address of the Service `kubernetes`."""
        return str(self.services[1])

    def node(self, number: int) -> str:
        """The address of node `number` (from 1)."""
        return str(self.nodes[10 + number])

    def node_pods(self, number: int) -> Network:
        """The pod range of node `number` (from 1)."""
        return self._cut(16 + number, 24)

    def _cut(self, third: int, length: int) -> Network:
        return Network((int(self.block.network_address) + (third << 8), length))


def choose(used: Iterable[Network]) -> AddressPlan:
    """The first 10.N.0.0/16, from N = 77, that overlaps nothing in use. Errors: ClusterError when all do."""
    taken = list(used)
    for offset in range(256):
        block = Network(f"10.{(FIRST_BLOCK + offset) % 256}.0.0/16")
        if not any(block.overlaps(network) for network in taken):
            return AddressPlan(block)
    raise ClusterError(
        "every 10.N.0.0/16 is in use on this machine", remedy="remove a route or address below 10.0.0.0/8"
    )


def parse_used(addresses: str, routes: str) -> list[Network]:
    """Networks in use, from `ip -json address` and `ip -json route show table all` (the default route is none)."""
    found = []
    for link in json.loads(addresses or "[]"):
        for info in link.get("addr_info", []):
            if info.get("family") == "inet":
                found.append(ipaddress.ip_interface(f"{info['local']}/{info['prefixlen']}").network)
    for route in json.loads(routes or "[]"):
        destination = route.get("dst", "default")
        if destination != "default" and ":" not in destination:
            found.append(Network(destination, strict=False))
    return [network for network in found if isinstance(network, Network) and network.prefixlen > 0]


def used_on_machine() -> list[Network]:
    """Networks of the machine's addresses and routes."""
    return parse_used(ip("-json", "-4", "address"), ip("-json", "-4", "route", "show", "table", "all"))


def ip(*arguments: str, inside: int | None = None) -> str:
    """Run ip(8), in the network namespace of process `inside` if given. Errors: ClusterError with ip's message."""
    command = [*enter(inside), "ip", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ClusterError(f"ip {' '.join(arguments)}: {done.stderr.strip()}", remedy=AFRESH)
    return done.stdout


def batch(commands: Sequence[str], inside: int | None = None) -> None:
    """Run many ip(8) commands in one process. Errors: ClusterError with ip's message about the first failure."""
    done = subprocess.run(
        [*enter(inside), "ip", "-batch", "-"], input="\n".join(commands), capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise ClusterError(f"ip -batch: {done.stderr.strip()}", remedy=AFRESH)


def enter(pid: int | None) -> list[str]:
    """The command prefix for running a command in the network namespace of a process."""
    return [] if pid is None else ["nsenter", f"--net=/proc/{pid}/ns/net", "--"]


def link_exists(name: str, inside: int | None = None) -> bool:
    """Whether a link of that name exists."""
    command = [*enter(inside), "ip", "link", "show", "dev", name]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def build_fabric(plan: AddressPlan, fabric: int, link: str, nodes: int) -> None:
    """Create the bridges in the fabric (the namespace of process `fabric`) and connect the machine to br0.

    The fabric gets routes to the nodes' pods too: the API server calls aggregated APIs and webhooks there.
    """
    # Forwarding without a route: packets to outside addresses are always refused at once.
    settings = {"ip_forward": 1, "icmp_ratelimit": 0}
    script = "; ".join(f"echo {value} > /proc/sys/net/ipv4/{name}" for name, value in settings.items())
    subprocess.run([*enter(fabric), "sh", "-c", script], check=False)
    length = plan.nodes.prefixlen
    batch(
        [
            "link set lo up",
            f"link add br0 address {mac(plan.api)} type bridge",
            "link add br1 type bridge",
            f"address add {plan.api}/{length} dev br0",
            "link set br0 up",
            "link set br1 up",
            # A Service address that a node's kube-proxy does not know must not be routed back to a node.
            f"rule add iif br0 to {plan.services} unreachable",
            "route add unreachable default metric " + LAST,
            *(f"route add {plan.node_pods(n)} via {plan.node(n)}" for n in range(1, nodes + 1)),
        ],
        inside=fabric,
    )
    # First the fallback, then the route: the machine's default route must never be used for a pod's address.
    ip("route", "replace", "unreachable", str(plan.block), "metric", LAST)
    ip("link", "add", link, "type", "veth", "peer", "name", "machine", "netns", str(fabric))
    batch(["link set machine master br0", "link set machine up"], inside=fabric)
    batch([f"address add {plan.machine}/{length} dev {link}", f"link set {link} up"])
    batch([f"route add {plan.node_pods(n)} via {plan.node(n)} dev {link}" for n in range(1, nodes + 1)])
    route_services(plan, fabric, link, 1)


def route_services(plan: AddressPlan, fabric: int, link: str, via: int) -> None:
    """Route Service addresses of the machine and the control plane to node `via`, where kube-proxy handles them."""
    for inside, device in ((fabric, "br0"), (None, link)):
        ip("route", "replace", str(plan.services), "via", plan.node(via), "dev", device, inside=inside)


def plan_of(link: str) -> AddressPlan | None:
    """The plan of a running cluster, from the machine's address on its link."""
    for block in parse_used(ip("-json", "-4", "address", "show", "dev", link), ""):
        return AddressPlan(block.supernet(new_prefix=16))
    return None


def remove_from_machine(plan: AddressPlan | None, link: str) -> None:
    """Remove the machine's link and routes; idempotent."""
    if link_exists(link):
        plan = plan or plan_of(link)
        ip("link", "delete", link)
    if plan is not None and f"unreachable {plan.block}" in ip("route", "show", "type", "unreachable"):
        ip("route", "delete", "unreachable", str(plan.block), "metric", LAST)


def mac(address: str, number: int = 0) -> str:
    """A locally administered MAC for a host's link: the same after every boot, so that no ARP cache becomes stale.

    A bridge needs one as well, otherwise it uses the lowest of its ports, which changes when nodes start and stop.
    """
    return ":".join(f"{byte:02x}" for byte in (0x02, number, *ipaddress.IPv4Address(address).packed))


def wire_node(fabric: int, node: int, name: str, address: str) -> None:
    """Give the namespace of process `node` its eth0 on br0 and eth1 on br1. Links of its last boot are removed."""
    for number in (0, 1):
        port = port_name(name, number)
        if link_exists(port, inside=fabric):
            ip("link", "delete", port, inside=fabric)
    # eth1 first: the node's init waits for eth0.
    batch(
        [
            command
            for number in (1, 0)
            for command in (
                f"link add {port_name(name, number)} type veth"
                f" peer name eth{number} address {mac(address, number)} netns {node}",
                f"link set {port_name(name, number)} master br{number} up",
            )
        ],
        inside=fabric,
    )


def port_name(node: str, number: int) -> str:
    """The fabric's end of a node's eth`number`."""
    return f"{node}-{number}"


def set_port(fabric: int, node: str, up: bool) -> None:
    """Disconnect or reconnect a node's network (eth0). The node sees the carrier change."""
    ip("link", "set", port_name(node, 0), "up" if up else "down", inside=fabric)


def namespace(pid: int) -> str:
    """The identity of a process's network namespace."""
    return str(Path(f"/proc/{pid}/ns/net").readlink())

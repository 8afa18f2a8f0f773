"""A launcher's pod with the tiny guest in it, in a network namespace with the handler's bridge and tap."""

import contextlib
import json
from collections.abc import Iterator
from typing import Any

from guests import tiny
from guests.disk import KERNEL_ARGS
from protos import launcher_pb2 as pb
from tests.node import netlab
from tests.node.launcherlab import Pod, vmi
from tests.waiting import wait_for

MAC = "02:00:00:00:00:01"
BRIDGE = """
ip link add k6t-eth0 type bridge
ip addr add 10.0.2.1/24 dev k6t-eth0
ip addr add fd10:0:2::1/120 dev k6t-eth0 nodad
ip link set k6t-eth0 up
ip tuntap add dev tap0 mode tap user 107 group 107 vnet_hdr
ip link set tap0 master k6t-eth0 up
sysctl -qw net.ipv4.ip_unprivileged_port_start=0
"""
NIC = pb.Nic(
    name="default", tap="tap0", mac=MAC, mtu=1400,
    dhcp4=pb.Dhcp4(device="k6t-eth0", server="10.0.2.1", address="10.0.2.2", prefix=24, router="10.0.2.1",
                   dns=["10.96.0.10"], search=["default.svc.cluster.local", "svc.cluster.local"], hostname="guest"),
    dhcp6=pb.Dhcp6(device="k6t-eth0", address="fd10:0:2::2", dns=["fd00::a"]),
)  # fmt: skip


def document() -> dict[str, Any]:
    """The VMI of the guest, as the handler sends it."""
    return vmi(
        "guest",
        domain={
            "memory": {"guest": "128Mi"},
            "devices": {
                "disks": [{"name": name, "disk": {"bus": "virtio"}} for name in ("seed", "data")],
                "interfaces": [{"name": "default", "masquerade": {}, "macAddress": MAC}],
            },
            "firmware": {"kernelBoot": {
                "kernelArgs": KERNEL_ARGS,
                "container": {"image": "tiny", "kernelPath": "/boot/kernel", "initrdPath": "/boot/initrd"},
            }},
        },
        networks=[{"name": "default", "pod": {}}],
        volumes=[{"name": "seed", "cloudInitNoCloud": {"userData": "#cloud-config\nhostname: from-cloud-init\n"}},
                 {"name": "data", "emptyDisk": {"capacity": "1Mi"}}],
    )  # fmt: skip


def ask(network: netlab.Namespace, address: str = "10.0.2.2") -> dict[str, Any]:
    """The guest's own report, over its address; empty while it does not answer."""
    try:
        return json.loads(network.run(f"curl -s --max-time 5 http://{address}/"))  # type: ignore[no-any-return]
    except (RuntimeError, ValueError):
        return {}


@contextlib.contextmanager
def running() -> Iterator[tuple[Pod, netlab.Namespace, pb.Report]]:
    """A guest that responds, its network, and the launcher's report of its start."""
    built = tiny.build()
    network = netlab.Namespace()
    try:
        network.run(BRIDGE)
        with Pod() as pod:
            for name in ("kernel", "initrd"):
                pod.image("kernel-boot", (built.folder / name).read_bytes(), f"boot/{name}")
            pod.start(network.pid)
            report = pod.sync(document(), [NIC])
            wait_for(lambda: ask(network), "the guest to answer", 120)
            yield pod, network, report
    finally:
        network.close()

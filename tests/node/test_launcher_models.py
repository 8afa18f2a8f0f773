"""Every model of network card at once, in a guest whose kernel drives them: each gets its own address by DHCP."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from guests import packages, tiny
from guests.disk import KERNEL_ARGS
from protos import launcher_pb2 as pb
from tests.node import netlab
from tests.node.launcherguest import ask
from tests.node.launcherlab import Pod, vmi
from tests.waiting import wait_for

pytestmark = pytest.mark.node
MODELS = ["virtio", "e1000", "e1000e", "rtl8139", "pcnet", "ne2k_pci"]
Guest = tuple[Pod, netlab.Namespace, pb.Report]


def mac(number: int) -> str:
    return f"02:00:00:00:01:{number:02x}"


def name(model: str) -> str:
    return model.replace("_", "-")


def nic(number: int) -> pb.Nic:
    dhcp = pb.Dhcp4(
        device=f"k6t-{number}", server=f"10.1.{number}.1", address=f"10.1.{number}.2", prefix=24, lease_seconds=600
    )
    return pb.Nic(name=name(MODELS[number]), tap=f"tap{number}", mac=mac(number), mtu=1400, dhcp4=dhcp)


def bridge(number: int) -> str:
    return f"""
        ip link add k6t-{number} type bridge
        ip addr add 10.1.{number}.1/24 dev k6t-{number}
        ip link set k6t-{number} up
        ip tuntap add dev tap{number} mode tap user 107 group 107 vnet_hdr
        ip link set tap{number} master k6t-{number} up
    """


def document() -> dict[str, Any]:
    interfaces = [
        {"name": name(model), "bridge": {}, "model": model, "macAddress": mac(number)}
        for number, model in enumerate(MODELS)
    ]
    return vmi(
        "models",
        domain={
            "memory": {"guest": "192Mi"},
            "devices": {"interfaces": interfaces, "autoattachGraphicsDevice": False},
            "firmware": {"kernelBoot": {
                "kernelArgs": KERNEL_ARGS,
                "container": {"image": "tiny", "kernelPath": "/boot/kernel", "initrdPath": "/boot/initrd"},
            }},
        },
        networks=[{"name": name(model), "multus": {"networkName": name(model)}} for model in MODELS],
    )  # fmt: skip


@pytest.fixture(scope="module")
def guest() -> Iterator[Guest]:
    built = tiny.build(packages.GENERIC_META)
    network = netlab.Namespace()
    try:
        network.run("sysctl -qw net.ipv4.ip_unprivileged_port_start=0" + "".join(map(bridge, range(len(MODELS)))))
        with Pod() as pod:
            for file in ("kernel", "initrd"):
                pod.image("kernel-boot", (built.folder / file).read_bytes(), f"boot/{file}")
            pod.start(network.pid)
            report = pod.sync(document(), [nic(number) for number in range(len(MODELS))])
            wait_for(lambda: ask(network, "10.1.0.2"), "the guest to answer", 120)
            yield pod, network, report
    finally:
        network.close()


@pytest.mark.parametrize("number", range(len(MODELS)), ids=MODELS)
def test_nic_of_every_model_gets_address_and_carries_packets(guest: Guest, number: int) -> None:
    _, network, report = guest
    told = wait_for(lambda: ask(network, f"10.1.{number}.2"), f"an answer over {MODELS[number]}", 60)
    (card,) = [card for card in told["interfaces"] if card["mac"] == mac(number)]
    assert f"10.1.{number}.2/24" in card["addresses"], json.dumps(card)
    info = report.nics[number]
    assert (info.name, info.model, info.mac) == (name(MODELS[number]), MODELS[number], mac(number))

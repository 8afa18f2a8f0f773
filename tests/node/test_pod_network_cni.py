"""From a NetworkAttachmentDefinition to a guest's card: our CNI plugin, the handler's attachments and its bridges."""

import json
from pathlib import Path

import pytest

from api.kubevirt.networks import pod_interface
from handler.pod_network import setup as network_setup
from handler.pod_network.interface_record import InterfaceRecord
from handler.pod_network.interface_request import InterfaceRequest
from kit import proc
from tests.node import netlab, wire
from tests.node.attachlab import LabPod, Node, bridge, node
from tests.node.cnilab import client, lab

pytestmark = pytest.mark.node
__all__ = ["client", "lab", "node"]
BLUE = pod_interface("blue")
SPOOFED = "02:66:66:66:66:66"


class AttachedPod(netlab.Namespace):
    """The namespace of a pod that is closed elsewhere."""

    def __init__(self, pid: int) -> None:
        self.pid = pid


async def attached_pod(node: Node, name: str) -> tuple[AttachedPod, LabPod]:
    """A pod that the handler has joined to the network."""
    lab_pod = await node.pod(name, f"dmz@{BLUE}", owner=name)
    with proc.Process(lab_pod.processes[0].pid) as process:
        await node.attachments().ensure(node.stored_pod(name), process)
    return AttachedPod(lab_pod.processes[0].pid), lab_pod


async def test_guest_sends_with_own_mac_only_and_detach_leaves_nothing(node: Node, tmp_path: Path):
    await node.network("dmz", bridge(node.lab, macspoofchk=True))
    pod, lab_pod = await attached_pod(node, "vm")
    peer, _ = await attached_pod(node, "peer")
    before = node.ports()
    record = InterfaceRecord(lab_pod.uid, tmp_path / "nics")
    with proc.Process(pod.pid) as process:
        made = proc.isolated_now(
            lambda: network_setup.attach(
                process, [InterfaceRequest("blue", BLUE)], record, lab_pod.uid, host=node.lab.node.path
            )
        )
    [blue] = made.attachments
    assert blue.lease4 is not None and str(blue.lease4.address) == "192.0.2.2/24"
    with (
        netlab.guest_of(pod, tap=blue.tap, mac=blue.mac, masqueraded=False) as guest,
        # Marks use a MAC of no interface by default; these use the guest's.
        wire.wires((guest, "eth0"), (peer, BLUE), blue.mac, mac_of(peer)) as (inside, outside),
    ):
        inside.send(wire.arp(SPOOFED, "192.0.2.2", "192.0.2.3"))
        inside.send(wire.discover(SPOOFED, 1))
        inside.send(wire.arp(blue.mac, "192.0.2.2", "192.0.2.3"))
        seen = outside.before(inside.mark())
        senders = {frame[6:12].hex(":") for frame in seen}
        assert blue.mac in senders and SPOOFED not in senders
    assert node.ports() == before
    await node.attachments().forget(lab_pod.uid)
    assert len(node.ports()) == 1 and node.records() and lab_pod.uid not in node.records()
    assert BLUE not in pod.run("ip link")


def mac_of(where: netlab.Namespace) -> str:
    found: str = json.loads(where.run(f"ip -j link show {BLUE}"))[0]["address"]
    return found

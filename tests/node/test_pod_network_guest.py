"""A whole guest on networks that the handler has made: real namespaces, DHCP, libvirt and QEMU."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from api.kubevirt.networks import pod_interface
from api.kubevirt.vmi import VirtualMachineInstance
from api.schema import codec
from guests import tiny
from handler.pod_network import interface_status
from handler.pod_network import setup as network_setup
from handler.pod_network.interface_record import InterfaceRecord
from handler.pod_network.interface_request import requests_of
from kit import proc
from protos import launcher_pb2 as pb
from tests.node import launcherguest, netlab
from tests.node.launcherguest import ask
from tests.node.launcherlab import Pod
from tests.node.netlab import NODE4, POD4, Namespace
from tests.waiting import wait_for

pytestmark = pytest.mark.node
BLUE = pod_interface("blue")
BLUE_NODE, BLUE_POD = "172.31.5.1", "172.31.5.9"
OWN_NIC = {"name": "default", "bridge": {}, "model": "virtio"}
BLUE_NIC = {"name": "blue", "bridge": {}, "model": "virtio"}
NETWORKS = [{"name": "default", "pod": {}}, {"name": "blue", "multus": {"networkName": "blue"}}]


class Vm:
    """A launcher's pod, the networks behind it, and the handler's part played by the test."""

    def __init__(self, pod: Pod, namespace: Namespace, records: Path) -> None:
        self.pod, self.namespace, self.records = pod, namespace, records

    def sync(self, *nics: dict) -> pb.Report:
        """What the handler does when the VMI has changed."""
        document = launcherguest.document()
        document["spec"]["domain"]["devices"]["interfaces"] = list(nics)
        document["spec"]["networks"] = NETWORKS
        vmi = codec.decode(VirtualMachineInstance, json.dumps(document))
        return self.pod.sync(document, interface_status.messages(vmi, self.attach(vmi)), 120)

    def attach(self, vmi: VirtualMachineInstance) -> network_setup.PodNetworkState:
        """The node's side."""
        with proc.Process(self.namespace.pid) as process:
            record, used = InterfaceRecord("uid-1", self.records), ("default", "blue")
            return proc.isolated_now(
                lambda: network_setup.attach(process, requests_of(vmi), record, "uid-1", used, "/proc/self/ns/net")
            )


@contextlib.contextmanager
def running(records: Path) -> Iterator[tuple[Namespace, Vm]]:
    built = tiny.build()
    with netlab.node_and_pod(ipv6=False, mtu=1400) as (node, namespace), Pod() as pod:
        for name in ("kernel", "initrd"):
            pod.image("kernel-boot", (built.folder / name).read_bytes(), f"boot/{name}")
        pod.start(namespace.pid)
        yield node, Vm(pod, namespace, records)


def plug(node: Namespace, pod: Namespace) -> None:
    node.run(f"ip link add v-blue type veth peer name {BLUE} netns {pod.pid}; ip link set v-blue up")
    node.run(f"ip addr add {BLUE_NODE}/24 dev v-blue")
    pod.run(f"ip link set {BLUE} up; ip addr add {BLUE_POD}/24 dev {BLUE}")


def test_guest_has_pod_address_and_gets_hotplugged_nic(tmp_path):
    with running(tmp_path / "nics") as (node, vm):
        given = json.loads(vm.namespace.run("ip -j link show eth0"))[0]["address"]
        vm.sync(OWN_NIC)
        wait_for(lambda: ask(node, POD4), "the guest to answer at the pod's address", 120)
        (card,) = ask(node, POD4)["interfaces"]
        assert (card["mac"], card["mtu"]) == (given, 1400) and f"{POD4}/24" in card["addresses"]
        assert given in node.run(f"ip neigh show {POD4}") and NODE4 in node.run("ip addr")
        plug(node, vm.namespace)
        blue = json.loads(vm.namespace.run(f"ip -j link show {BLUE}"))[0]["address"]
        vm.sync(OWN_NIC, BLUE_NIC)
        wait_for(lambda: {info.name for info in vm.pod.report().nics} == {"default", "blue"}, "the card")
        found = wait_for(lambda: ask(node, BLUE_POD), "the guest to answer on the other network", 60)
        assert blue in {each["mac"] for each in found["interfaces"]}
        vm.sync(OWN_NIC, BLUE_NIC | {"state": "absent"})
        wait_for(lambda: {info.name for info in vm.pod.report().nics} == {"default"}, "the card to be gone", 60)
        assert len(ask(node, POD4)["interfaces"]) == 1

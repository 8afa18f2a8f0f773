"""NICs that come and go on a running VM, through the whole handler: namespaces, sockets and gRPC are real."""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from api.errors import NetworkError
from api.k8s.objects import Pod
from api.kubevirt.networks import pod_interface
from api.kubevirt.vmi import VirtualMachineInstance
from kit import proc
from tests.fakes.handler_objects import pod, vmi
from tests.node import netlab, podlab
from tests.node.handlerkube import HandlerKube
from tests.node.test_handler_vmi import handler, open_files
from tests.waiting import until

pytestmark = pytest.mark.node
BLUE = pod_interface("blue")
SHORT = BLUE.removeprefix("pod")
MAC = "52:54:00:12:34:56"
DEFAULT_NIC = {"name": "default", "masquerade": {}, "macAddress": MAC}
BLUE_NIC = {"name": "blue", "bridge": {}}
NETWORKS = [{"name": "default", "pod": {}}, {"name": "blue", "multus": {"networkName": "blue"}}]
ANNOTATION = "k8s.v1.cni.cncf.io/networks"


class FakeAttachments:
    """Secondary networks as `handler.secondary_networks.attachments` joins them: the interfaces that the pod's
    annotation names."""

    def __init__(self, node: netlab.Namespace, namespace: netlab.Namespace) -> None:
        self._node, self._namespace = node, namespace
        self.forgotten: list[str] = []
        self.fails = False

    async def ensure(self, pod: Pod, process: proc.Process) -> dict[str, str]:
        if self.fails:
            raise NetworkError("network blue: no such bridge")
        wanted = msgspec.json.decode((pod.metadata.annotations or {}).get(ANNOTATION) or "[]")
        there = self._namespace.run("ip link")
        for each in wanted:
            if each["interface"] not in there:
                self._node.run(
                    f"ip link add v-blue type veth peer name {each['interface']} netns {self._namespace.pid}; "
                    "ip link set v-blue up"
                )
                self._namespace.run(f"ip link set {each['interface']} up; ip addr add 172.31.5.9/24 dev {BLUE}")
        if not wanted and BLUE in there:
            self._namespace.run(f"ip link del {BLUE}")
        return {each["interface"]: "hyperlet" for each in wanted}

    async def forget(self, pod_uid: str) -> None:
        self.forgotten.append(pod_uid)


@pytest.fixture
def pods() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="hl-") as path:
        Path(path).chmod(0o755)
        yield Path(path)


@pytest.fixture
async def kube(tmp_path):
    async with HandlerKube.started(tmp_path) as made:
        yield made


@contextlib.contextmanager
def lab(pods: Path):
    with netlab.node_and_pod() as (node, namespace), podlab.pod(pods, namespace) as made:
        yield made, namespace, FakeAttachments(node, namespace)


def spec(*nics: dict) -> dict:
    names = {nic["name"] for nic in nics}
    devices = {"interfaces": [dict(nic) for nic in nics]}
    networks = [network for network in NETWORKS if network["name"] in names]
    return {"domain": {"memory": {"guest": "64Mi"}, "devices": devices}, "networks": networks}


def change(kube: HandlerKube, *nics: dict) -> None:
    document = kube.document(VirtualMachineInstance, "test", "vm")
    kube.put(VirtualMachineInstance, {**document, "spec": {**document["spec"], **spec(*nics)}})


def annotate(kube: HandlerKube, text: str) -> None:
    document = kube.document(Pod, "test", "virt-launcher-vm-abcde")
    kube.put(Pod, {**document, "metadata": {**document["metadata"], "annotations": {ANNOTATION: text}}})


ASKED = msgspec.json.encode([{"name": "blue", "namespace": "test", "interface": BLUE}]).decode()


def store_vmi(kube: HandlerKube, made: podlab.Pod, *nics: dict, networks: str = "[]") -> None:
    kube.put(Pod, pod(made.uid))
    annotate(kube, networks)
    kube.put(VirtualMachineInstance, vmi(pod=made.uid, **spec(*nics)))


def shown(kube: HandlerKube) -> list[str]:
    return [entry.get("name", "") for entry in kube.status().get("interfaces", [])]


async def test_nic_is_hotplugged_and_unplugged(kube, pods):
    with lab(pods) as (made, namespace, attacher):
        launcher = made.launcher()
        store_vmi(kube, made, DEFAULT_NIC)
        async with handler(kube, pods, attacher):
            await until(lambda: kube.status()["phase"] == "Running")
            # The VMI lists it before the pod does: these are two writes.
            change(kube, DEFAULT_NIC, BLUE_NIC)
            annotate(kube, ASKED)
            await until(lambda: shown(kube) == ["default", "blue"])
            first, second = kube.status()["interfaces"]
            assert (first["ipAddress"], first["infoSource"]) == (netlab.POD4, "domain")
            assert (second["ipAddress"], second["infoSource"]) == ("172.31.5.9", "domain, multus-status")
            assert second["podInterfaceName"] == BLUE and second["linkState"] == "up"
            [*_, sync] = launcher.syncs()
            assert [nic["name"] for nic in sync["nics"]] == ["default", "blue"]
            assert sync["nics"][1]["dhcp4"]["address"] == "172.31.5.9" and sync["nics"][1]["tap"] == f"tap{SHORT}"
            assert sync["nics"][1]["mac"] == second["mac"]
            change(kube, DEFAULT_NIC, BLUE_NIC | {"state": "down"})
            await until(lambda: kube.status()["interfaces"][1]["linkState"] == "down")
            # The guest keeps the card: its tap stays, and so does its entry.
            launcher.set_behaviour(plugs=False)
            count = len(launcher.syncs())
            change(kube, DEFAULT_NIC, BLUE_NIC | {"state": "absent"})
            await until(lambda: len(launcher.syncs()) > count)
            assert f"tap{SHORT}" in namespace.run("ip link") and shown(kube) == ["default", "blue"]
            # It gives it back.
            launcher.set_behaviour(report={"nics": [{"name": "default", "mac": MAC, "link_up": True}]})
            await until(lambda: shown(kube) == ["default"])
            await until(lambda: f"tap{SHORT}" not in namespace.run("ip link"))
            change(kube, DEFAULT_NIC)
            annotate(kube, "[]")
            await until(lambda: BLUE not in namespace.run("ip link"))
        assert kube.condition("Synchronized")["status"] == "True"
        assert [reason for _, reason, _ in kube.events] == ["Started"]


async def test_handler_restarted_during_hotplug_resumes(kube, pods):
    with lab(pods) as (made, namespace, attacher):
        launcher = made.launcher()
        store_vmi(kube, made, DEFAULT_NIC)
        async with handler(kube, pods, attacher):
            await until(lambda: kube.status()["phase"] == "Running")
        # While there is no handler, a card is asked for.
        change(kube, DEFAULT_NIC, BLUE_NIC)
        annotate(kube, ASKED)
        async with handler(kube, pods, attacher):
            await until(lambda: shown(kube) == ["default", "blue"])
            await until(lambda: len(launcher.syncs()) == 2)
        before = namespace.run("nft -a list ruleset; ip -o link | cut -d: -f1,2")
        mac = kube.status()["interfaces"][1]["mac"]
        patches = len(kube.patches)
        async with handler(kube, pods, attacher) as machines:
            await until(lambda: any(machine.synced for machine in machines._tracked.values()))
        assert namespace.run("nft -a list ruleset; ip -o link | cut -d: -f1,2") == before
        assert (len(launcher.syncs()), len(kube.patches)) == (2, patches)
        assert kube.status()["interfaces"][1]["mac"] == mac
        # While there is none, the card is given up, and the guest gives it back.
        launcher.set_behaviour(report={"nics": [{"name": "default", "mac": MAC, "link_up": True}]})
        change(kube, DEFAULT_NIC, BLUE_NIC | {"state": "absent"})
        async with handler(kube, pods, attacher):
            await until(lambda: shown(kube) == ["default"] and f"tap{SHORT}" not in namespace.run("ip link"))


async def test_pod_network_bridge_survives_handler_restart(kube, pods):
    with lab(pods) as (made, _, attacher):
        launcher = made.launcher()
        store_vmi(kube, made, {"name": "default", "bridge": {}})
        async with handler(kube, pods, attacher):
            await until(lambda: kube.status()["phase"] == "Running")
        [entry] = kube.status()["interfaces"]
        assert entry["ipAddresses"] == [netlab.POD4, netlab.POD6]
        [sync] = launcher.syncs()
        dhcp = sync["nics"][0]["dhcp4"]
        assert (dhcp["address"], dhcp["router"], dhcp["server"]) == (netlab.POD4, netlab.NODE4, "169.254.75.10")
        assert sync["nics"][0]["mac"] == entry["mac"]
        async with handler(kube, pods, attacher) as machines:
            await until(lambda: any(machine.synced for machine in machines._tracked.values()))
            kube.remove(Pod, "test", "virt-launcher-vm-abcde")
            await until(lambda: attacher.forgotten == [made.uid] and not open_files(made))
        assert kube.status()["interfaces"] == [entry] and len(launcher.syncs()) == 1
        assert list((pods / "nics").iterdir()) == []


async def test_failed_network_is_reported_and_running_vm_unaffected(kube, pods):
    with lab(pods) as (made, namespace, attacher):
        launcher = made.launcher()
        store_vmi(kube, made, DEFAULT_NIC)
        async with handler(kube, pods, attacher):
            await until(lambda: kube.status()["phase"] == "Running")
            attacher.fails = True
            change(kube, DEFAULT_NIC, BLUE_NIC)
            annotate(kube, ASKED)
            await until(lambda: "no such bridge" in kube.condition("Synchronized").get("message", ""))
            assert kube.status()["phase"] == "Running" and len(launcher.syncs()) == 1
            assert "tap0" in namespace.run("ip link")
            attacher.fails = False
            await until(lambda: shown(kube) == ["default", "blue"])
            await until(lambda: kube.condition("Synchronized")["status"] == "True")


async def test_false_nic_reports_add_no_nic_and_remove_no_tap(kube, pods):
    with lab(pods) as (made, namespace, attacher):
        launcher = made.launcher()
        store_vmi(kube, made, DEFAULT_NIC, BLUE_NIC, networks=ASKED)
        async with handler(kube, pods, attacher):
            await until(lambda: shown(kube) == ["default", "blue"])
            made_up = [{"name": f"n{number}", "mac": MAC, "link_up": True} for number in range(2000)]
            launcher.set_behaviour(report={"nics": made_up, "agent_connected": True})
            await until(lambda: kube.condition("AgentConnected"))
            assert shown(kube) == ["default", "blue"]
            assert f"tap{SHORT}" in namespace.run("ip link") and "tap0" in namespace.run("ip link")
            launcher.set_behaviour(report={"nics": [], "machine": "pc-q35-9.0"})
            await until(lambda: kube.status()["machine"]["type"] == "pc-q35-9.0")
            assert f"tap{SHORT}" in namespace.run("ip link") and shown(kube) == ["default", "blue"]

"""VMs and pods on secondary networks: a bridge of the nodes, attached through NetworkAttachmentDefinitions."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator

import pytest
import yaml

from tests.e2e.manifests import booting, cloud_init, idle
from tests.e2e.processes import processes, wait_for_process
from tests.e2e.support import (
    EXISTING,
    ROOT,
    SYSTEM,
    E2eNamespace,
    Json,
    VmUnderTest,
    conditions,
    container_statuses,
    project,
)
from tests.waiting import wait_for

pytestmark = pytest.mark.alone  # handlers are killed, and a node is powered off

SEEDS = ROOT / "tests" / "golden" / "seed-manifests"
HANDLERS = "--selector=kubevirt.io=virt-handler"
NODES = ("node1", "node2")
MAC = {"left": "02:00:00:00:93:0b", "right": "02:00:00:00:93:0c"}
EXTRA_MAC = "02:00:00:00:93:0e"
# IPv6: there is no DHCP on this network, and the guest's DHCP client clears IPv4 addresses while it asks.
ADDRESS = {"left": "fd00:93::11", "right": "fd00:93::12"}


def seed(name: str) -> Json:
    manifest: Json = yaml.safe_load((SEEDS / name).read_text())
    return manifest


def network(name: str, bridge: str = "br1", **config: object) -> Json:
    """A NetworkAttachmentDefinition of a bridge, with the resource name that schedules VMs to its nodes."""
    conf = {"cniVersion": "1.0.0", "name": name, "type": "cnv-bridge", "bridge": bridge, **config}
    return {
        "apiVersion": "k8s.cni.cncf.io/v1",
        "kind": "NetworkAttachmentDefinition",
        "metadata": {
            "name": name,
            "annotations": {"k8s.v1.cni.cncf.io/resourceName": f"bridge.network.kubevirt.io/{bridge}"},
        },
        "spec": {"config": json.dumps(conf)},
    }


def addresses(subnet: str) -> Json:
    return {"type": "host-local", "ranges": [[{"subnet": subnet}]]}


def nics(*secondary: tuple[str, str, Json], pod: Json | None = None) -> dict[str, object]:
    """The interfaces and networks of an instance: on the pod network (masquerade unless `pod` says otherwise), then
    (name, definition, more of the interface) for each bridge."""
    first = {"name": "default", **(pod or {"masquerade": {}})}
    return {
        "domain": {
            "devices": {"interfaces": [first, *({"name": name, "bridge": {}, **more} for name, _, more in secondary)]}
        },
        "networks": [
            {"name": "default", "pod": {}},
            *({"name": name, "multus": {"networkName": nad}} for name, nad, _ in secondary),
        ],
    }


def on(node: str) -> dict[str, str]:
    return {"kubernetes.io/hostname": node}


def setup_of(name: str, then: str = "true") -> str:
    """Cloud-init user data that sets an address on the guest's bridge NIC."""
    guest_nic = f"$(grep -l {MAC[name]} /sys/class/net/*/address | cut -d/ -f5)"
    lines = [f"ip addr add {ADDRESS[name]}/64 dev {guest_nic}", then]
    return "#cloud-config\nruncmd:\n" + "".join(f"  - {json.dumps(line)}\n" for line in lines)


LISTENING = (
    f"(while :; do printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 2 {ADDRESS['left']} 80 | "
    "grep -q hostname...left && echo heard left >/dev/ttyS0; sleep 1; done) &"
)
"""Loop in right: log each response from left over the bridge on the console."""


@pytest.fixture(scope="module", autouse=True)
def bridge_setup(space: E2eNamespace) -> Iterator[None]:
    """The bridge on both nodes (as `make up` creates it), and the objects that the seed manifests require."""
    if EXISTING:
        pytest.skip("needs nodes of its own")
    project("cluster", "bridge", "br1", "--port", "eth1")
    space.apply(seed("nad-br1-public.yaml"))
    for node in NODES:  # the image that the users' pod names
        inside(node, "ctr -n k8s.io images tag --force hyperlet.local/pause:1 example.local/app:1")
    yield


@pytest.fixture(scope="module")
def left(space: E2eNamespace, bridge_setup: None) -> VmUnderTest:
    return space.apply_vm(
        booting(
            "left",
            cloud_init(setup_of("left")),
            nodeSelector=on("node1"),
            **nics(("lan", "br1-public", {"macAddress": MAC["left"]})),
        )
    )


@pytest.fixture(scope="module")
def right(space: E2eNamespace, left: VmUnderTest) -> VmUnderTest:
    machine = space.apply_vm(
        booting(
            "right",
            cloud_init(setup_of("right", LISTENING)),
            nodeSelector=on("node2"),
            **nics(("lan", "br1-public", {"macAddress": MAC["right"].upper().replace(":", "-")})),
        )
    )
    left.until_status("Running")
    return machine.until_status("Running")


def received_count(machine: VmUnderTest) -> int:
    """Number of responses from left in right's console log."""
    return machine.log().count("heard left")


def assert_traffic(right: VmUnderTest, what: str) -> None:
    """Wait until right has received two more responses from left: the first may have been sent before."""
    before = received_count(right)
    wait_for(lambda: received_count(right) >= before + 2, what, seconds=60, explain=right.diagnostics)


def guest_nic(machine: VmUnderTest, mac: str) -> Json | None:
    """The guest's NIC with that MAC."""
    return next((each for each in machine.guest().report()["interfaces"] if each["mac"] == mac), None)


def interface(machine: VmUnderTest, name: str) -> Json:
    """An interface of the VMI's status; empty if it is not there."""
    found = ((machine.vmi() or {}).get("status") or {}).get("interfaces") or []
    return next((each for each in found if each.get("name") == name), {})


def inside(node: str, command: str) -> str:
    """What a shell command prints on a node."""
    return project("cluster", "exec", node, "--", "sh", "-c", command)


def remaining_attachments(pod_uid: str = "") -> list[str]:
    """Interfaces and records on the nodes of a pod's (default: all pods') secondary networks."""
    found = []
    for node in NODES:
        links = [line for line in inside(node, "ip -o link show").splitlines() if "cnv" in line]
        records = inside(node, "ls /var/lib/hyperlet/attachments").split()
        found += [f"{node} {each}" for each in [*links, *records] if pod_uid in each]
    return found


def annotated(machine: VmUnderTest, key: str) -> list[Json]:
    """A JSON list in an annotation of the launcher pod."""
    listed: list[Json] = json.loads(
        machine.pod()["metadata"].get("annotations", {}).get(f"k8s.v1.cni.cncf.io/{key}", "[]")
    )
    return listed


# ---- a bridge of the nodes


def test_vms_on_different_nodes_communicate_over_bridge(left: VmUnderTest, right: VmUnderTest) -> None:
    assert (left.node(), right.node()) == NODES
    assert_traffic(right, "right hears left over the bridge")
    for machine in (left, right):
        machine.answer()
        found = guest_nic(machine, MAC[machine.name])
        assert found and f"{ADDRESS[machine.name]}/64" in found["addresses"]


def test_vmi_status_lists_both_networks(right: VmUnderTest) -> None:
    told = right.answer()
    assert len(told["interfaces"]) == 2
    first, second = (right.vmi() or {})["status"]["interfaces"][:2]
    pod = right.pod()
    assert (first["name"], first["ipAddress"]) == ("default", pod["status"]["podIP"])
    assert (second["name"], second["mac"]) == ("lan", MAC["right"])
    assert "domain" in second["infoSource"] and "multus-status" in second["infoSource"]


def test_guest_agent_address_and_device_are_in_status(right: VmUnderTest) -> None:
    wait_for(
        lambda: ADDRESS["right"] in interface(right, "lan").get("ipAddresses", []) and interface(right, "lan"),
        "the guest agent's address of the card",
        explain=right.diagnostics,
    )
    told = interface(right, "lan")
    assert told["interfaceName"].startswith("e") and "guest-agent" in told["infoSource"]


def test_launcher_pod_has_multus_network_status(right: VmUnderTest, space: E2eNamespace) -> None:
    own, lan = annotated(right, "network-status")
    assert own["default"] is True and own["interface"] == "eth0" and own["ips"]
    assert (lan["name"], lan["mac"]) == (f"{space.name}/br1-public", MAC["right"])
    assert lan["interface"] == annotated(right, "networks")[0]["interface"]


def test_restarted_handler_and_cni_containers_keep_bridge_traffic(
    left: VmUnderTest, right: VmUnderTest, space: E2eNamespace
) -> None:
    """Both containers of both handler pods are killed: traffic between the guests continues."""
    system = space.kubectl.in_namespace(SYSTEM)
    pods = system.items("pods", HANDLERS)
    counts = {pod["metadata"]["name"]: sum(c["restartCount"] for c in container_statuses(pod)) for pod in pods}
    for pod in pods:
        for process in processes(pod):
            if process.command.split("\0")[1:3] in (["-m", "handler"], ["-m", "cni"]):
                process.kill()

    def back() -> bool:
        now = {pod["metadata"]["name"]: pod for pod in system.items("pods", HANDLERS)}
        return all(
            sum(c["restartCount"] for c in container_statuses(now[name])) >= count + 2
            and conditions(now[name])["Ready"]["status"] == "True"
            for name, count in counts.items()
        )

    wait_for(back, "both containers of both pods are started again and Ready", seconds=90)
    assert_traffic(right, "right still hears left")
    assert (left.phase(), right.phase()) == ("Running", "Running")


# ---- changes of a running machine


def template(machine: VmUnderTest) -> Json:
    spec: Json = (machine.vm() or {})["spec"]["template"]["spec"]
    return spec


def rewire(machine: VmUnderTest, change: Callable[[list[Json], list[Json]], None]) -> None:
    """Change interfaces and networks in the VM's template, as `kubectl edit` would."""
    spec = template(machine)
    interfaces, networks = spec["domain"]["devices"]["interfaces"], spec["networks"]
    change(interfaces, networks)
    machine.patch(
        {"spec": {"template": {"spec": {"domain": {"devices": {"interfaces": interfaces}}, "networks": networks}}}}
    )


def assert_nic_hotplug_and_unplug(machine: VmUnderTest, mac: str) -> None:
    """Assert that a bridge NIC can be hotplugged into a running VM and unplugged, in the same pod."""
    machine.space.apply(network("extra"))

    def plug(interfaces: list[Json], networks: list[Json]) -> None:
        interfaces.append({"name": "extra", "bridge": {}, "macAddress": mac})
        networks.append({"name": "extra", "multus": {"networkName": "extra"}})

    def unplug(interfaces: list[Json], networks: list[Json]) -> None:
        interfaces[-1]["state"] = "absent"

    pod = machine.pod()["metadata"]["uid"]
    rewire(machine, plug)
    wait_for(lambda: guest_nic(machine, mac), "the guest has the card", seconds=90, explain=machine.diagnostics)
    rewire(machine, unplug)
    wait_for(lambda: guest_nic(machine, mac) is None, "the guest gave it back", seconds=90, explain=machine.diagnostics)
    wait_for(
        lambda: "extra" not in [each["name"] for each in annotated(machine, "networks")],
        "the pod has left the network",
        explain=machine.diagnostics,
    )
    assert machine.pod()["metadata"]["uid"] == pod


def test_nic_is_hotplugged_and_unplugged_in_running_vm(left: VmUnderTest, space: E2eNamespace) -> None:
    space.apply(network("extra", ipam=addresses("192.168.94.0/24")))
    pod, boot = left.pod(), left.answer()["bootId"]

    def plug(interfaces: list[Json], networks: list[Json]) -> None:
        interfaces.append({"name": "extra", "bridge": {}, "macAddress": EXTRA_MAC})
        networks.append({"name": "extra", "multus": {"networkName": "extra"}})

    rewire(left, plug)
    wait_for(
        lambda: any(each.startswith("192.168.94.") for each in (guest_nic(left, EXTRA_MAC) or {})["addresses"]),
        "the guest has the new card, with the address that the network gave",
        seconds=90,
        explain=left.diagnostics,
    )
    assert left.pod()["metadata"]["uid"] == pod["metadata"]["uid"] and left.answer()["bootId"] == boot
    assert "RestartRequired" not in conditions(left.vm())
    device = next(each["interface"] for each in annotated(left, "networks") if each["name"] == "extra")

    def unplug(interfaces: list[Json], networks: list[Json]) -> None:
        interfaces[-1]["state"] = "absent"

    rewire(left, unplug)
    wait_for(
        lambda: guest_nic(left, EXTRA_MAC) is None,
        "the guest has given the card back",
        seconds=90,
        explain=left.diagnostics,
    )
    wait_for(
        lambda: device not in [each["interface"] for each in annotated(left, "network-status")],
        "the pod has left the network",
        seconds=60,
        explain=left.diagnostics,
    )
    wait_for(
        lambda: "extra" not in [each["name"] for each in template(left)["networks"]],
        "the network is gone from the template",
        seconds=60,
        explain=left.diagnostics,
    )
    assert not inside("node1", "ls /var/lib/cni/networks/extra | grep ^192 || true").strip()
    assert left.answer()["bootId"] == boot


def test_interface_state_sets_guest_link_down_and_up(left: VmUnderTest, right: VmUnderTest) -> None:
    def state(value: str) -> Callable[[list[Json], list[Json]], None]:
        def change(interfaces: list[Json], networks: list[Json]) -> None:
            interfaces[1]["state"] = value

        return change

    rewire(left, state("down"))
    wait_for(
        lambda: (guest_nic(left, MAC["left"]) or {})["state"] == "down",
        "the guest sees no carrier",
        explain=left.diagnostics,
    )
    wait_for(lambda: interface(left, "lan").get("linkState") == "down", "the status says so", explain=left.diagnostics)
    rewire(left, state("up"))
    wait_for(
        lambda: (guest_nic(left, MAC["left"]) or {})["state"] == "up",
        "the guest has it again",
        explain=left.diagnostics,
    )
    assert_traffic(right, "right hears left again")


# ---- scheduling, bindings, errors


@contextlib.contextmanager
def bridge_on(node: str, name: str) -> Iterator[None]:
    project("cluster", "bridge", name, "--node", node)
    try:
        yield
    finally:
        project("cluster", "bridge", name, "--node", node, "--remove")


def test_vm_is_scheduled_to_node_with_its_bridge(space: E2eNamespace) -> None:
    manifest = idle("seeker", **{"network": True, **nics(("cellar", "cellar", {}))})
    space.apply(network("cellar", "br7"))
    seeker = space.apply_vm(manifest)
    seeker.until_status("ErrorUnschedulable")
    with bridge_on("node2", "br7"):
        seeker.until_status("Running")
        assert seeker.node() == "node2"
        seeker.delete()


def offered(space: E2eNamespace, node: str) -> set[str]:
    """The node's allocatable bridges; the kubelet lists withdrawn ones for a while, with 0."""
    found = (space.kubectl.get("node", node) or {})["status"]["allocatable"]
    prefix = "bridge.network.kubevirt.io/"
    return {name.removeprefix(prefix) for name, count in found.items() if name.startswith(prefix) and count != "0"}


def test_pod_network_bridge_is_not_allocatable(space: E2eNamespace) -> None:
    for node in NODES:
        project("cluster", "exec", node, "--", "test", "-d", "/sys/class/net/cni0/bridge")
        assert "br1" in offered(space, node) and "cni0" not in offered(space, node)


def test_denied_bridges_are_not_allocatable(space: E2eNamespace) -> None:
    system = space.kubectl.in_namespace(SYSTEM)
    said = system("annotate", "kubevirt", "kubevirt", "hyperlet/denied-bridges=br[1]", "--overwrite", check=False)
    assert "hyperlet/denied-bridges" in said and "'br[1]'" in said, said
    system("annotate", "kubevirt", "kubevirt", "hyperlet/denied-bridges=br?", "--overwrite")
    try:
        for node in NODES:
            wait_for(lambda node=node: "br1" not in offered(space, node), f"{node}'s br1 is withdrawn")
    finally:
        system("annotate", "kubevirt", "kubevirt", "hyperlet/denied-bridges-")
    for node in NODES:
        wait_for(lambda node=node: "br1" in offered(space, node), f"{node}'s br1 is offered again")


def test_bridge_binding_gives_guest_pod_address(space: E2eNamespace) -> None:
    machine = space.apply_vm(booting("bare", **nics(pod={"bridge": {}}))).until_status("Running")
    told = machine.answer()
    ip = machine.pod()["status"]["podIP"]
    (only,) = told["interfaces"]
    assert any(each.startswith(f"{ip}/") for each in only["addresses"])
    assert interface(machine, "default")["ipAddress"] == ip and interface(machine, "default")["mac"] == only["mac"]
    machine.discard()


def test_vlan_unsupported_by_kernel_is_reported_as_cni_error(space: E2eNamespace) -> None:
    everybodys = space.kubectl.in_namespace("default")
    everybodys("apply", "-f", str(SEEDS / "nad-vlan-93.yaml"))
    try:
        machine = space.apply_vm(idle("tagged", **{"network": True, **nics(("vlan", "default/vlan-93", {}))}))
        machine.until_message("network default/vlan-93", "cnv-bridge", "vlan", "CNI error 7")
        machine.delete()
    finally:
        everybodys("delete", "network-attachment-definitions", "vlan-93", "--ignore-not-found")


def test_missing_network_is_reported_and_vm_starts_once_created(space: E2eNamespace) -> None:
    machine = space.apply_vm(idle("early", **{"network": True, **nics(("later", "later", {}))}))
    machine.until_message("later", "NetworkAttachmentDefinition")
    space.apply(network("later"))
    machine.until_status("Running")
    machine.discard()


# ---- the users' own manifests


def test_seed_pod_and_seed_vm_get_addresses_of_same_network(space: E2eNamespace) -> None:
    """pod-networks.yaml and vm-bridge-multus.yaml as they are, with a definition of the name that they use."""
    space.apply(network("bond1-br1", ipam=addresses("192.168.95.0/24")))
    space.apply(seed("pod-networks.yaml"))
    machine = space.apply_vm(seed("vm-bridge-multus.yaml"))
    pod = wait_for(
        lambda: (
            (found := space.kubectl.get("pod", "application-pod"))
            and "k8s.v1.cni.cncf.io/network-status" in found["metadata"]["annotations"]
            and found
        ),
        "the pod has its interface",
        explain=lambda: str(space.events("application-pod")),
    )
    second = json.loads(pod["metadata"]["annotations"]["k8s.v1.cni.cncf.io/network-status"])[1]
    assert second["interface"] == "net1" and second["ips"][0].startswith("192.168.95.")
    assert any("AddedInterface: Add net1 [192.168.95." in each for each in space.events("application-pod"))
    machine.until_status("Running")
    told = interface(machine, "nic-0")
    assert told["ipAddress"].startswith("192.168.95.") and told["mac"]
    # No operating system, so the power button has no effect: do not wait for the whole grace period.
    machine.discard()
    wait_for_process(machine.pod(), lambda process: process.is_qemu).kill()


def test_pod_with_network_of_other_namespace_gets_event(space: E2eNamespace) -> None:
    pod = seed("pod-networks.yaml")
    pod["metadata"] |= {"name": "asks-for-more", "annotations": {"k8s.v1.cni.cncf.io/networks": "kube-system/secret"}}
    space.apply(pod)
    wait_for(
        lambda: any(
            "namespace kube-system; only networks of the pod's own" in e for e in space.events("asks-for-more")
        ),
        "an Event says that the network is another namespace's",
    )


# ---- the end


def test_deleted_vms_leave_no_interface_or_record_on_nodes(
    space: E2eNamespace, left: VmUnderTest, right: VmUnderTest
) -> None:
    uids = [machine.pod()["metadata"]["uid"] for machine in (left, right)]
    pods = [pod for pod in space.kubectl.items("pods") if "kubevirt.io" not in pod["metadata"].get("labels", {})]
    uids += [pod["metadata"]["uid"] for pod in pods]
    assert all(any(uid in line for line in remaining_attachments()) for uid in uids[:2]), remaining_attachments()
    for machine in (left, right):
        machine.discard()
    for pod in pods:
        space.kubectl("delete", "pod", pod["metadata"]["name"], "--grace-period=1", "--wait=false")
    wait_for(
        lambda: not [line for line in remaining_attachments() if any(uid in line for uid in uids)],
        "interfaces and records of the deleted pods are gone",
        seconds=90,
        explain=lambda: "\n".join(remaining_attachments()),
    )
    for node in NODES:
        for name in ("extra", "bond1-br1"):
            given = inside(node, f"ls /var/lib/cni/networks/{name} 2>/dev/null | grep ^192 || true").split()
            assert not given, f"{node}: addresses of {name} are still given away: {given}"
        assert "cnv" not in inside(node, "nft list table bridge hyperlet-cni 2>/dev/null || true")


def test_pods_rejoin_network_after_power_cycle_and_stale_records_are_removed(space: E2eNamespace) -> None:
    """The node restarts with its configured bridge, and with the handler's records on its disk."""
    space.apply(network("kept", ipam=addresses("192.168.96.0/24")))
    pod = seed("pod-networks.yaml")
    pod["metadata"] |= {"name": "stays", "annotations": {"k8s.v1.cni.cncf.io/networks": "kept"}}
    pod["spec"] |= {"nodeName": "node2", "terminationGracePeriodSeconds": 1}
    space.apply(pod)
    machine = space.apply_vm(
        idle("cut", **{"network": True, "nodeSelector": on("node2"), **nics(("lan", "br1-public", {}))})
    )
    machine.until_status("Running")
    uid = space.kubectl.items("pods", "--field-selector=metadata.name=stays")[0]["metadata"]["uid"]
    before, instance = machine.pod()["metadata"]["uid"], machine.uid()
    wait_for(
        lambda: len(remaining_attachments(uid)) == 2 and len(remaining_attachments(before)) == 2,
        "both are joined, and on record",
    )
    project("cluster", "off", "node2")
    project("cluster", "on", "node2")
    wait_for(
        lambda: len(remaining_attachments(uid)) == 2 and not remaining_attachments(before),
        "the pod has joined again, and the machine's first pod has left",
        seconds=120,
        explain=lambda: "\n".join([*remaining_attachments(), *space.events("stays"), machine.diagnostics()]),
    )
    machine.until_replaced(instance)
    wait_for(lambda: remaining_attachments(machine.pod()["metadata"]["uid"]), "the machine's new pod has joined")
    assert len(inside("node2", "ls /var/lib/cni/networks/kept | grep ^192").split()) == 1
    machine.delete()
    space.kubectl("delete", "pod", "stays", "--wait=false")
    wait_for(
        lambda: not remaining_attachments(uid),
        "nothing is left of the pod",
        explain=lambda: "\n".join(remaining_attachments()),
    )

"""Pods joined to networks without Multus: real namespaces, the daemon of cnv-bridge, the Go plugins beside it."""

import asyncio
import json
import os
import signal
from pathlib import Path

import pytest

from api.errors import NetworkError
from handler.node import pod_processes
from handler.secondary_networks.attachments import MULTUS, OURS, AttachmentFailed
from handler.secondary_networks.reconciler import RETRY_SECONDS, Leave
from kit import proc
from kit.reconcile import RequeueAfter
from tests.fakes.apiserver import Refusal
from tests.node.attachlab import NAMESPACE, LabPod, Node, bridge, node
from tests.node.cnilab import client, lab
from tests.waiting import until

pytestmark = pytest.mark.node
__all__ = ["client", "lab", "node"]


async def ensure(node: Node, name: str, lab_pod: LabPod, attachments=None) -> dict[str, str]:
    with proc.Process(lab_pod.processes[0].pid) as process:
        return await (attachments or node.attachments()).ensure(node.stored_pod(name), process)


def _alive(pid: int) -> bool:
    try:
        with proc.Process(pid) as process:
            return process.alive
    except OSError:
        return False


async def refusal(node: Node, name: str, lab_pod: LabPod, attachments=None) -> str:
    with pytest.raises(NetworkError) as caught:
        await ensure(node, name, lab_pod, attachments)
    return caught.value.message


async def test_pod_is_attached_with_mac_and_address_and_status_is_written(node: Node) -> None:
    await node.network("dmz", bridge(node.lab))
    asked = [{"name": "dmz", "interface": "pod01234567890", "mac": "02:AA:00:00:00:01"}]
    lab_pod = await node.pod("vm", json.dumps(asked), owner="vm")
    assert await ensure(node, "vm", lab_pod) == {"pod01234567890": OURS}
    link = lab_pod.space.links()["pod01234567890"]
    assert link.up and link.mac == "02:aa:00:00:00:01"
    assert "192.0.2.2/24" in lab_pod.space.run("ip -o address show dev pod01234567890")
    (entry,) = node.status_entries("vm")
    assert entry == {
        "name": "web/dmz",
        "interface": "pod01234567890",
        "ips": ["192.0.2.2"],
        "mac": "02:aa:00:00:00:01",
        "dns": {},
    }
    own = json.loads(node.stored_pod("vm").metadata.annotations["k8s.v1.cni.cncf.io/network-status"])[0]
    assert (own["name"], own["interface"], own["ips"], own["mac"], own["default"]) == (
        "pods",
        "eth0",
        ["10.1.0.5"],
        "02:00:00:00:00:e0",
        True,
    )


async def test_repeated_attach_changes_nothing(node: Node) -> None:
    await node.network("dmz", bridge(node.lab))
    lab_pod = await node.pod("vm", "dmz", owner="vm")
    attachments = node.attachments()
    await ensure(node, "vm", lab_pod, attachments)
    before, calls = lab_pod.space.links(), dict(node.api.calls)
    assert await ensure(node, "vm", lab_pod, attachments) == {"net1": OURS}
    assert await ensure(node, "vm", lab_pod, node.attachments()) == {"net1": OURS}
    assert lab_pod.space.links() == before and dict(node.api.calls) == calls


async def test_detach_leaves_nothing_and_is_idempotent(node: Node) -> None:
    await node.network("dmz", bridge(node.lab))
    lab_pod = await node.pod("vm", "dmz,dmz@second", owner="vm")
    attachments = node.attachments()
    await ensure(node, "vm", lab_pod, attachments)
    assert (
        len(node.ports()) == 2 and node.leases("lan") == {"192.0.2.2", "192.0.2.3"} and node.records() == {lab_pod.uid}
    )
    await attachments.forget(lab_pod.uid)
    assert not node.ports() and not node.leases("lan") and not node.records()
    assert set(lab_pod.space.links()) == {"lo", "eth0"}
    await attachments.forget(lab_pod.uid)
    await attachments.forget("never-was")


async def test_seed_manifest_plugin_chain_is_attached(node: Node) -> None:
    """cnv-bridge, then cnv-tuning, 0.3.1, without IPAM."""
    plugins = [{"type": "cnv-bridge", "bridge": "br1"}, {"type": "cnv-tuning", "dataDir": "/run/cni/hl-test-tuning"}]
    await node.network("br1-public", {"cniVersion": "0.3.1", "name": "br1-public", "plugins": plugins}, "default")
    lab_pod = await node.pod(
        "vm", '[{"name":"br1-public","namespace":"default","mac":"02:aa:00:00:00:02"}]', owner="vm"
    )
    attachments = node.attachments()
    await ensure(node, "vm", lab_pod, attachments)
    assert lab_pod.space.links()["net1"].mac == "02:aa:00:00:00:02"
    assert node.status_entries("vm")[0]["name"] == "default/br1-public" and "ips" not in node.status_entries("vm")[0]
    await attachments.forget(lab_pod.uid)
    assert not node.ports() and not node.records()


async def test_go_plugins_are_supported(node: Node) -> None:
    await node.network("go", bridge(node.lab, type="bridge", capabilities={"ips": True}))
    await node.network("vlan", {"type": "macvlan", "master": "br1", "cniVersion": "0.4.0"})
    lab_pod = await node.pod("vm", '[{"name":"go"},{"name":"vlan","mac":"02:aa:00:00:00:05"}]', owner="vm")
    attachments = node.attachments()
    await ensure(node, "vm", lab_pod, attachments)
    assert set(lab_pod.space.links()) == {"lo", "eth0", "net1", "net2"}
    assert lab_pod.space.links()["net2"].kind == "macvlan"
    await attachments.forget(lab_pod.uid)
    assert set(lab_pod.space.links()) == {"lo", "eth0"} and not node.leases("lan")


async def test_removed_network_is_detached_and_new_network_attached(node: Node) -> None:
    await node.network("one", bridge(node.lab, "one"))
    await node.network("two", bridge(node.lab, "two"))
    lab_pod = await node.pod("vm", "one@a", owner="vm")
    attachments = node.attachments()
    await ensure(node, "vm", lab_pod, attachments)
    node.api.patch("pods", "vm", {"metadata": {"annotations": {"k8s.v1.cni.cncf.io/networks": "two@b"}}}, NAMESPACE)
    assert await ensure(node, "vm", lab_pod, attachments) == {"b": OURS}
    assert set(lab_pod.space.links()) == {"lo", "eth0", "b"} and not node.leases("one") and node.leases("two")
    assert [entry["interface"] for entry in node.status_entries("vm")] == ["b"]


async def test_failed_add_is_rolled_back_and_reported_with_plugin_error(node: Node) -> None:
    plugins = [bridge(node.lab), {"type": "cnv-tuning", "sysctl": {"net.ipv4.no_such": "1"}}]
    await node.network("bad", {"cniVersion": "1.0.0", "name": "bad", "plugins": plugins})
    lab_pod = await node.pod("vm", "bad", owner="vm")
    words = await refusal(node, "vm", lab_pod)
    assert words.startswith("network web/bad: plugin cnv-tuning failed: ") and "(CNI error " in words
    assert not node.ports() and not node.leases("bad") and not node.records()
    assert set(lab_pod.space.links()) == {"lo", "eth0"}


async def test_failed_network_keeps_attached_networks(node: Node) -> None:
    await node.network("dmz", bridge(node.lab))
    lab_pod = await node.pod("vm", "dmz,missing", owner="vm")
    words = await refusal(node, "vm", lab_pod)
    assert words == ("network web/missing: no such NetworkAttachmentDefinition in namespace web")
    assert "net1" in lab_pod.space.links()
    await node.network("missing", bridge(node.lab, "late"))
    assert await ensure(node, "vm", lab_pod) == {"net1": OURS, "net2": OURS}


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"type": "no-such-plugin"}, "plugin no-such-plugin is not on this node"),
        ({"type": "../../../bin/sh"}, "without a path"),
        ({"type": "cnv-bridge", "name": "pods"}, "is already used by the node's CNI configuration"),
        ("{", "spec.config is not JSON"),
        ({"type": "cnv-bridge", "bridge": "br1", "vlan": 93}, "VLAN"),
        ({"type": "cnv-bridge", "bridge": "br1", "ipam": {"type": "dhcp"}}, "ipam type dhcp"),
    ],
)
async def test_invalid_definition_is_reported(node: Node, config, words: str) -> None:
    node.lab.node.run("ip link add br1 type bridge; ip link set br1 up")
    await node.network("bad", config)
    lab_pod = await node.pod("vm", "bad", owner="vm")
    said = await refusal(node, "vm", lab_pod)
    assert said.startswith("network web/bad: ") and words in said
    assert not node.ports() and not node.records()


async def test_plugin_that_hangs_or_floods_is_killed(node: Node) -> None:
    node.plugin("flood", "exec yes '{'")
    node.plugin("hang", f"sleep 600 & echo $! > {node.folder}/child; sleep 600")
    with pytest.raises(OSError, match="Exec format"):
        (node.bin / "odd").write_bytes(b"\x7fELF nonsense")
        (node.bin / "odd").chmod(0o755)
        await node.host.run("odd", {}, b"")
    flooded = await node.host.run("flood", {}, b"")
    assert flooded.trouble == "printed more than 1 MiB and was killed" and flooded.code == -signal.SIGKILL
    hung = await node.host.run("hang", {}, b"", seconds=0.3)
    assert hung.trouble == "did not exit within 0.3 s and was killed"
    child = int((node.folder / "child").read_text())
    await until(lambda: not _alive(child))


async def test_plugin_environment_excludes_handler_variables(node: Node) -> None:
    node.plugin("spy", "env; cat; readlink /proc/self/ns/net; echo oops >&2; exit 3")
    seen = await node.host.run("spy", {"CNI_COMMAND": "ADD"}, b'{"a": 1}')
    text = seen.stdout.decode()
    assert seen.code == 3 and seen.stderr == b"oops\n" and '{"a": 1}' in text
    assert f"CNI_PATH={node.bin}:" in text and "CNI_COMMAND=ADD" in text
    assert str(Path(node.lab.node.path).readlink()) in text
    assert "KUBERNETES" not in text and "PYTHON" not in text and "HOME=" not in text


async def test_pod_in_host_network_is_refused(node: Node) -> None:
    await node.network("dmz", bridge(node.lab))
    lab_pod = await node.pod("vm", "dmz", owner="vm")
    with proc.Process(os.getpid()) as process, pytest.raises(NetworkError, match="node's network namespace"):
        await node.attachments().ensure(node.stored_pod("vm"), process)
    assert not node.ports() and not node.records() and lab_pod.uid


async def test_multus_interfaces_are_awaited_but_not_created(node: Node) -> None:
    node.configure("00-multus.conf", {"name": "multus-cni-network", "type": "multus-shim"})
    await node.network("dmz", bridge(node.lab))
    lab_pod = await node.pod("vm", "dmz", owner="vm")
    words = await refusal(node, "vm", lab_pod)
    assert words.startswith("network web/dmz: Multus runs on this node but has not created net1")
    assert not node.ports() and not node.records()
    lab_pod.space.run("ip link add net1 type bridge")
    status = json.dumps(
        [{"name": "pods", "interface": "eth0", "default": True}, {"name": "web/dmz", "interface": "net1"}]
    )
    node.api.patch(
        "pods", "vm", {"metadata": {"annotations": {"k8s.v1.cni.cncf.io/network-status": status}}}, NAMESPACE
    )
    assert await ensure(node, "vm", lab_pod) == {"net1": MULTUS}
    assert node.stored_pod("vm").metadata.annotations["k8s.v1.cni.cncf.io/network-status"] == status
    assert not node.records()


async def test_missing_definition_does_not_block_other_networks(node: Node) -> None:
    await node.network("good", bridge(node.lab))
    lab_pod = await node.pod("vm", "absent@a,good@b", owner="vm")
    with pytest.raises(AttachmentFailed, match="no such NetworkAttachmentDefinition") as refused:
        await ensure(node, "vm", lab_pod, node.attachments())
    assert set(refused.value.missing) == {"a"} and refused.value.makers == {"b": OURS}
    assert "b" in lab_pod.space.links() and [entry["interface"] for entry in node.status_entries("vm")] == ["b"]


async def test_forged_network_status_is_ignored(node: Node) -> None:
    await node.network("dmz", bridge(node.lab))
    lab_pod = await node.pod("vm", "dmz", owner="vm")
    status = json.dumps([{"interface": "eth0", "default": True}, {"interface": "net1"}])
    node.api.patch(
        "pods", "vm", {"metadata": {"annotations": {"k8s.v1.cni.cncf.io/network-status": status}}}, NAMESPACE
    )
    assert await ensure(node, "vm", lab_pod) == {"net1": OURS}


async def test_add_interrupted_by_crash_is_restarted(node: Node) -> None:
    await node.network("dmz", bridge(node.lab))
    lab_pod = await node.pod("vm", "dmz", owner="vm")
    await ensure(node, "vm", lab_pod)
    path = next((node.folder / "attachments").iterdir())
    record = json.loads(path.read_text())
    del record["joined"][0]["result"]
    path.write_text(json.dumps(record))
    assert await ensure(node, "vm", lab_pod) == {"net1": OURS}
    assert len(node.ports()) == 1 and len(node.leases("lan")) == 1


async def test_cancelled_attach_leaves_no_partial_state(node: Node) -> None:
    node.plugin("slow", f"cat > {node.folder}/in; until [ -e {node.folder}/go ]; do sleep 0.02; done; echo '{{}}'")
    await node.network("slow", {"type": "slow"})
    lab_pod = await node.pod("vm", "slow", owner="vm")
    attachments = node.attachments()
    task = asyncio.create_task(ensure(node, "vm", lab_pod, attachments))
    await until((node.folder / "in").exists)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    (node.folder / "go").touch()
    await attachments.close()
    (joined,) = attachments.record(lab_pod.uid).joined
    assert joined.result == {}


# ---- the whole of it, following the pods ---------------------------------------------------------------------------


async def test_ordinary_pod_is_attached_and_detached_on_deletion(node: Node) -> None:
    await node.network("bond1-br1", bridge(node.lab))
    await node.handler()
    lab_pod = await node.pod("application-pod", "bond1-br1")
    await until(lambda: node.status_entries("application-pod"))
    assert lab_pod.space.links()["net1"].up
    await until(node.events)
    assert node.events() == [("AddedInterface", "Add net1 [192.0.2.2] from web/bond1-br1")]
    node.api.remove("pods", "application-pod", NAMESPACE)
    lab_pod.end()
    await until(lambda: not node.records())
    assert not node.ports() and not node.leases("lan")


async def test_failed_attach_of_pod_is_reported_by_event(node: Node) -> None:
    await node.handler()
    lab_pod = await node.pod("app", "absent")
    await until(node.events)
    reason, words = node.events()[0]
    assert reason == "FailedAddInterface" and "no such NetworkAttachmentDefinition" in words
    await node.network("absent", bridge(node.lab))
    await until(lambda: node.status_entries("app"))
    assert lab_pod.space.links()["net1"].up


async def test_launcher_pod_status_is_retried_after_api_error(node: Node) -> None:
    """The interface exists, so the VM starts although the status could not be written."""
    await node.network("dmz", bridge(node.lab))
    attachments = await node.handler()
    lab_pod = await node.pod("vm", "dmz", owner="vm")
    refusal = Refusal(500, "InternalError", "not now")
    node.api.refuse = lambda verb, plural, body: refusal if (verb, plural) == ("patch", "pods/status") else None
    assert await ensure(node, "vm", lab_pod, attachments) == {"net1": OURS}
    assert not node.status_entries("vm")
    node.api.refuse = lambda verb, plural, body: None
    await until(lambda: node.status_entries("vm"))


async def test_removed_network_of_launcher_pod_is_detached_without_request(node: Node) -> None:
    await node.network("dmz", bridge(node.lab))
    attachments = await node.handler()
    lab_pod = await node.pod("vm", "dmz,dmz@second", owner="vm")
    await ensure(node, "vm", lab_pod, attachments)
    node.api.patch("pods", "vm", {"metadata": {"annotations": {"k8s.v1.cni.cncf.io/networks": "dmz"}}}, NAMESPACE)
    await until(lambda: [entry["interface"] for entry in node.status_entries("vm")] == ["net1"])
    assert set(lab_pod.space.links()) == {"lo", "eth0", "net1"} and len(node.leases("lan")) == 1


async def test_new_sandbox_of_same_pod_is_attached(node: Node) -> None:
    await node.network("dmz", bridge(node.lab))
    await node.handler()
    lab_pod = await node.pod("app", "dmz")
    await until(lambda: node.status_entries("app"))
    lab_pod.sandbox()
    restarted = {"status": {"containerStatuses": [{"name": "app", "restartCount": 1, "state": {"running": {}}}]}}
    node.api.patch("pods", "app", restarted, NAMESPACE)
    await until(lambda: "net1" in lab_pod.space.links())
    await until(lambda: len(node.leases("lan")) == 1 and len(node.ports()) == 1)


async def test_pods_removed_during_handler_downtime_are_detached(node: Node) -> None:
    await node.network("dmz", bridge(node.lab))
    await node.handler()
    gone, stays = await node.pod("gone", "dmz"), await node.pod("stays", "dmz")
    await until(lambda: node.status_entries("gone") and node.status_entries("stays"))
    for task in node.tasks:
        task.cancel()
    await asyncio.gather(*node.tasks, return_exceptions=True)
    gone.end()
    node.api.remove("pods", "gone", NAMESPACE)
    await node.restart()
    await until(lambda: node.records() == {stays.uid})
    assert len(node.ports()) == 1 and len(node.leases("lan")) == 1 and "net1" in stays.space.links()


async def test_failed_del_is_retried_and_reported(node: Node) -> None:
    switch = node.folder / "broken"
    node.plugin(
        "flaky",
        f'[ $CNI_COMMAND = DEL ] && [ -e {switch} ] && echo \'{{"code":11,"msg":"busy"}}\' && exit 1; echo \'{{}}\'',
    )
    await node.network("flaky", {"type": "flaky"})
    attachments = await node.handler()
    lab_pod = await node.pod("app", "flaky")
    lab_pod.space.run("ip link add net1 type bridge")
    await until(lambda: node.status_entries("app"))
    switch.touch()
    node.api.remove("pods", "app", NAMESPACE)
    lab_pod.end()
    await until(lambda: "FailedRemoveInterface" in [reason for reason, _ in node.events()], seconds=30)
    assert "plugin flaky failed: busy (CNI error 11)" in node.events()[-1][1]
    await attachments.forget(lab_pod.uid)  # says so in the log, raises nothing
    assert node.records() == {lab_pod.uid}
    switch.unlink()
    await until(lambda: not node.records(), seconds=30)


async def test_pod_missing_in_api_but_running_keeps_networks(node: Node) -> None:
    await node.network("dmz", bridge(node.lab))
    await node.handler()
    lab_pod = await node.pod("app", "dmz")
    await until(lambda: node.status_entries("app"))
    plans: list[object] = []
    planned = node.networks.plan

    def plan(observed):
        plans.append(found := planned(observed))
        return found

    node.networks.plan = plan  # type: ignore[method-assign]
    node.api.remove("pods", "app", NAMESPACE)
    await until(lambda: plans.count([RequeueAfter(RETRY_SECONDS)]) >= 2)
    assert [Leave()] not in plans and "net1" in lab_pod.space.links()
    lab_pod.end()
    await until(lambda: not node.records())


def test_sandbox_is_oldest_process_outside_host_network() -> None:
    lab_pod = LabPod("8b4a9c1e-0000-4000-8000-00000000abcd")
    try:
        first = lab_pod.processes[0].pid
        lab_pod.start("unshare", "--net", "sleep", "600")
        lab_pod.start("sleep", "600")  # in the node's network, as a container that is only being made
        found = pod_processes.sandbox(lab_pod.uid, "/proc/self/ns/net")
        assert found is not None and found.pid == first
        found.close()
        lab_pod.processes[0].kill()
        lab_pod.processes[0].wait()
        found = pod_processes.sandbox(lab_pod.uid, "/proc/self/ns/net")
        assert found is not None and found.pid == lab_pod.processes[1].pid
        found.close()
        assert pod_processes.sandbox("8b4a9c1e-0000-4000-8000-00000000abce", "/proc/self/ns/net") is None
    finally:
        lab_pod.close()

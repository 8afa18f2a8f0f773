"""The CSI Node service: staging, publishing, expansion and removal."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.csi import csi_pb2 as csi
from cluster.csi import host
from cluster.csi.errors import StorageError
from tests.unit.cluster.csi.csilab import GIB, MODES, FakeHost, Lab, capability, lab, on, size

BLOCK = capability(MODES.MULTI_NODE_MULTI_WRITER, block=True)


@pytest.fixture
def local(tmp_path: Path) -> Lab:
    return lab("local", tmp_path)


@pytest.fixture
def shared(tmp_path: Path) -> Lab:
    return lab("shared", tmp_path)


def on_node1(of: Lab, **request: object) -> csi.Volume:
    wanted = csi.TopologyRequirement(requisite=[on("node1")])
    return of.volume(accessibility_requirements=wanted, capacity_range=size(GIB), **request)


def unstage(of: Lab, volume: csi.Volume, node: str, path: Path) -> None:
    request = csi.NodeUnstageVolumeRequest(volume_id=volume.volume_id, staging_target_path=str(path))
    of.nodes[node].NodeUnstageVolume(request, None)


def unpublish(of: Lab, volume: csi.Volume, node: str, path: Path) -> None:
    request = csi.NodeUnpublishVolumeRequest(volume_id=volume.volume_id, target_path=str(path))
    of.nodes[node].NodeUnpublishVolume(request, None)


def test_local_file_system_is_staged_published_and_removed(local: Lab, tmp_path: Path) -> None:
    volume, node = on_node1(local), local.hosts["node1"]
    staging, target = tmp_path / "staging", tmp_path / "pod" / "mount"
    wanted = capability(mount_flags=["noatime"])
    for _ in range(2):
        local.stage(volume, "node1", staging, wanted)
        local.publish(volume, "node1", staging, target, wanted, readonly=True)
    assert node.flags == ["noatime"]
    assert node.mounted == {str(staging): ("/dev/loop0", False), str(target): ("/dev/loop0", True)}
    for _ in range(2):
        unpublish(local, volume, "node1", target)
    assert not target.exists()
    for _ in range(2):
        unstage(local, volume, "node1", staging)
    assert (node.mounted, node.machine.loops) == ({}, {})
    assert local.pools.volume(volume.volume_id).staged == ()


def test_local_volume_is_refused_on_another_node(local: Lab, tmp_path: Path) -> None:
    volume = on_node1(local)
    with pytest.raises(StorageError, match="is on node1, not on node2") as refused:
        local.stage(volume, "node2", tmp_path / "staging")
    assert refused.value.code == "FAILED_PRECONDITION"


def test_shared_volume_is_refused_before_it_is_attached(shared: Lab, tmp_path: Path) -> None:
    volume = shared.volume()
    with pytest.raises(StorageError, match="not attached to node1") as refused:
        shared.stage(volume, "node1", tmp_path / "staging")
    assert refused.value.code == "FAILED_PRECONDITION"
    assert shared.hosts["node1"].mounted == {}


def test_shared_file_system_is_the_servers_directory(shared: Lab, tmp_path: Path) -> None:
    volume = shared.volume()
    shared.attach(volume, "node1")
    shared.stage(volume, "node1", tmp_path / "staging")
    assert shared.hosts["node1"].mounted == {str(tmp_path / "staging"): (str(shared.data(volume)), False)}


def test_nodes_share_a_device_and_the_last_one_detaches_it(shared: Lab, tmp_path: Path) -> None:
    volume = shared.volume(volume_capabilities=[BLOCK])
    for name in ("node1", "node2"):
        shared.attach(volume, name, volume_capability=BLOCK)
        shared.stage(volume, name, tmp_path / name, BLOCK)
        shared.publish(volume, name, tmp_path / name, tmp_path / f"{name}-pod", BLOCK)
        assert shared.hosts[name].mounted[str(tmp_path / f"{name}-pod")] == ("/dev/loop0", False)
        assert (tmp_path / f"{name}-pod").is_file(), "a device is bind mounted over a file"
    for name, left in (("node1", ["/dev/loop0"]), ("node2", [])):
        unpublish(shared, volume, name, tmp_path / f"{name}-pod")
        unstage(shared, volume, name, tmp_path / name)
        assert list(shared.hosts[name].machine.loops) == left


def test_unstaged_volume_is_not_published(local: Lab, tmp_path: Path) -> None:
    for volume, wanted in (
        (on_node1(local), capability()),
        (on_node1(local, name="b", volume_capabilities=[BLOCK_1]), BLOCK_1),
    ):
        with pytest.raises(StorageError, match="not staged") as refused:
            local.publish(volume, "node1", tmp_path / "staging", tmp_path / "pod", wanted)
        assert refused.value.code == "FAILED_PRECONDITION"


BLOCK_1 = capability(block=True)


def test_single_pod_volume_is_published_once(local: Lab, tmp_path: Path) -> None:
    only = capability(MODES.SINGLE_NODE_SINGLE_WRITER)
    volume = on_node1(local, volume_capabilities=[only])
    local.stage(volume, "node1", tmp_path / "staging", only)
    for _ in range(2):
        local.publish(volume, "node1", tmp_path / "staging", tmp_path / "first", only)
    with pytest.raises(StorageError, match="is single-pod, and published at ") as refused:
        local.publish(volume, "node1", tmp_path / "staging", tmp_path / "second", only)
    assert refused.value.code == "FAILED_PRECONDITION"
    unpublish(local, volume, "node1", tmp_path / "first")
    local.publish(volume, "node1", tmp_path / "staging", tmp_path / "second", only)


def test_access_type_must_match_the_volume(local: Lab, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="is a file system"):
        local.stage(on_node1(local), "node1", tmp_path / "staging", BLOCK_1)
    with pytest.raises(StorageError, match="is a device"):
        local.stage(on_node1(local, name="b", volume_capabilities=[BLOCK_1]), "node1", tmp_path / "staging")


@pytest.mark.parametrize("block", [False, True])
def test_volume_expands_online(local: Lab, tmp_path: Path, block: bool) -> None:
    wanted = capability(block=block)
    volume, node = on_node1(local, volume_capabilities=[wanted]), local.hosts["node1"]
    local.stage(volume, "node1", tmp_path / "staging", wanted)
    target = tmp_path / "target"
    local.publish(volume, "node1", tmp_path / "staging", target, wanted)
    local.controller.ControllerExpandVolume(
        csi.ControllerExpandVolumeRequest(volume_id=volume.volume_id, capacity_range=size(3 * GIB)), None
    )
    assert node.machine.sizes == {"/dev/loop0": GIB}
    request = csi.NodeExpandVolumeRequest(volume_id=volume.volume_id, volume_path=str(target))
    assert local.nodes["node1"].NodeExpandVolume(request, None).capacity_bytes == 3 * GIB
    assert node.machine.sizes == {"/dev/loop0": 3 * GIB}
    assert list(node.file_systems.values()) == ([] if block else [3 * GIB])
    stats = csi.NodeGetVolumeStatsRequest(volume_id=volume.volume_id, volume_path=str(target))
    assert local.nodes["node1"].NodeGetVolumeStats(stats, None).usage[0].total > 0
    with pytest.raises(StorageError) as refused:
        local.nodes["node1"].NodeExpandVolume(
            csi.NodeExpandVolumeRequest(volume_id=volume.volume_id, volume_path="/nowhere"), None
        )
    assert refused.value.code == "NOT_FOUND"


def test_reboot_clears_staging(shared: Lab, tmp_path: Path) -> None:
    volume = shared.volume(volume_capabilities=[BLOCK])
    for name in ("node1", "node2"):
        shared.attach(volume, name, volume_capability=BLOCK)
        shared.stage(volume, name, tmp_path / name, BLOCK)
    shared.nodes["node1"].join()
    assert shared.pools.volume(volume.volume_id).staged == ("node1", "node2"), "only the driver was restarted"
    shared.hosts["node1"].booted = "second"
    shared.nodes["node1"].join()
    assert shared.pools.volume(volume.volume_id).staged == ("node2",)
    assert list(shared.hosts["node1"].machine.loops) == ["/dev/loop0"], "node2 has it in use"
    shared.hosts["node2"].booted = "second"
    shared.nodes["node2"].join()
    assert shared.hosts["node1"].machine.loops == {}


def test_topology_is_the_node_name(local: Lab, shared: Lab) -> None:
    told = local.nodes["node2"].NodeGetInfo(csi.NodeGetInfoRequest(), None)
    assert (told.node_id, told.accessible_topology) == ("node2", on("node2"))
    assert not shared.nodes["node2"].NodeGetInfo(csi.NodeGetInfoRequest(), None).HasField("accessible_topology")


# ---- output of the node's programs


def test_losetup_output_is_parsed() -> None:
    text = """{"loopdevices": [
      {"name": "/dev/loop1", "back-ino": 10266938, "back-maj:min": "254:0"},
      {"name": "/dev/loop0", "back-ino": null, "back-maj:min": null}]}"""
    assert host.parse_loops(text) == [host.AttachedLoop("/dev/loop1", (254, 0), 10266938)]
    assert host.parse_loops("") == []


def test_mountinfo_is_parsed() -> None:
    text = (
        "36 35 7:0 / /var/lib/kubelet/with\\040space rw,noatime master:1 - xfs /dev/loop0 rw\n"
        "37 35 0:52 / /proc rw - proc proc rw\n"
    )
    assert [mount.path for mount in host.parse_mounts(text)] == ["/var/lib/kubelet/with space", "/proc"]
    assert host.parse_mounts(text)[0].major_minor == (7, 0)


def test_fake_node_implements_every_method() -> None:
    public = {name for name in vars(host.CsiHost) if not name.startswith("_")}
    inherited = {"path", "mounts", "format"}
    assert public - inherited <= set(vars(FakeHost)), "methods that the fake inherits would change the machine"

"""The CSI Controller service: volumes and snapshots."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.csi import controller
from cluster.csi import csi_pb2 as csi
from cluster.csi.driver import MOST_VOLUMES
from cluster.csi.errors import StorageError
from cluster.csi.host import SMALLEST
from tests.unit.cluster.csi.csilab import GIB, MODES, Lab, capability, lab, on, size


@pytest.fixture
def local(tmp_path: Path) -> Lab:
    return lab("local", tmp_path)


@pytest.fixture
def shared(tmp_path: Path) -> Lab:
    return lab("shared", tmp_path)


def snapshot(of: Lab, volume: csi.Volume, name: str = "picture") -> csi.Snapshot:
    request = csi.CreateSnapshotRequest(name=name, source_volume_id=volume.volume_id)
    return of.controller.CreateSnapshot(request, None).snapshot


def source_of(item: csi.Volume | csi.Snapshot) -> csi.VolumeContentSource:
    if isinstance(item, csi.Snapshot):
        return csi.VolumeContentSource(snapshot=csi.VolumeContentSource.SnapshotSource(snapshot_id=item.snapshot_id))
    return csi.VolumeContentSource(volume=csi.VolumeContentSource.VolumeSource(volume_id=item.volume_id))


# ---- creating


def test_local_volume_is_created_on_the_preferred_node(local: Lab) -> None:
    wanted = csi.TopologyRequirement(requisite=[on("node1"), on("node2")], preferred=[on("node2"), on("node1")])
    volume = local.volume(accessibility_requirements=wanted)
    assert list(volume.accessible_topology) == [on("node2")]
    assert "/pools/node2/" in str(local.data(volume))


def test_local_volume_for_node_without_storage_is_refused(local: Lab) -> None:
    wanted = csi.TopologyRequirement(requisite=[on("node9")])
    with pytest.raises(StorageError, match="no storage on node9") as refused:
        local.volume(accessibility_requirements=wanted)
    assert refused.value.code == "RESOURCE_EXHAUSTED"


def test_shared_volume_has_no_topology(shared: Lab) -> None:
    assert not shared.volume(volume_capabilities=[capability(MODES.MULTI_NODE_MULTI_WRITER)]).accessible_topology


@pytest.mark.parametrize(
    ("kind", "block", "is_file"),
    [("local", False, True), ("local", True, True), ("shared", False, False), ("shared", True, True)],
)
def test_volume_data_is_a_file_or_a_directory(tmp_path: Path, kind: str, block: bool, is_file: bool) -> None:
    made = lab(kind, tmp_path)
    volume = made.volume(volume_capabilities=[capability(block=block)], capacity_range=size(2 * GIB))
    assert made.data(volume).is_file() == is_file
    if is_file:
        assert made.data(volume).stat().st_size == volume.capacity_bytes == 2 * GIB
        assert made.data(volume).stat().st_blocks == 0, "it is thin"


def test_repeated_create_returns_the_same_volume(local: Lab) -> None:
    first = local.volume(capacity_range=size(GIB))
    assert local.volume(capacity_range=size(GIB)) == first
    assert len(local.pools.volumes()) == 1


@pytest.mark.parametrize(
    "other",
    [
        {"capacity_range": size(2 * GIB)},
        {"capacity_range": size(limit=GIB // 2)},
        {"volume_capabilities": [capability(block=True)]},
        {"volume_content_source": source_of(csi.Volume(volume_id="vol-of-another"))},
    ],
)
def test_different_volume_of_the_same_name_is_refused(local: Lab, other: dict[str, object]) -> None:
    local.volume(capacity_range=size(GIB))
    with pytest.raises(StorageError) as refused:
        local.volume(**other)
    assert refused.value.code == "ALREADY_EXISTS"


@pytest.mark.parametrize(
    ("request_fields", "words"),
    [
        ({"volume_capabilities": []}, "volume_capabilities is missing"),
        ({"volume_capabilities": [csi.VolumeCapability()]}, "access_mode is missing"),
        ({"volume_capabilities": [capability(MODES.MULTI_NODE_MULTI_WRITER)]}, "reachable from one node only"),
        ({"volume_capabilities": [capability(), capability(block=True)]}, "not both"),
        ({"volume_capabilities": [capability(fs_type="ext4")]}, "local volumes have xfs"),
        ({"capacity_range": size(-1)}, "negative"),
    ],
)
def test_unsupported_requests_are_refused_with_a_reason(
    local: Lab, request_fields: dict[str, object], words: str
) -> None:
    with pytest.raises(StorageError, match=words) as refused:
        local.volume(**request_fields)
    assert refused.value.code == "INVALID_ARGUMENT"
    assert not local.pools.volumes()


def test_pool_capacity_is_never_exceeded(local: Lab) -> None:
    node1 = csi.TopologyRequirement(requisite=[on("node1")])
    with pytest.raises(StorageError) as refused:
        local.volume("too large", capacity_range=size(101 * GIB), accessibility_requirements=node1)
    assert refused.value.code == "OUT_OF_RANGE"
    local.volume("large", capacity_range=size(60 * GIB), accessibility_requirements=node1)
    with pytest.raises(StorageError, match=f"pool node1 has {40 * GIB} bytes left") as refused:
        local.volume("second", capacity_range=size(60 * GIB), accessibility_requirements=node1)
    assert refused.value.code == "RESOURCE_EXHAUSTED"
    asked = local.controller.GetCapacity(csi.GetCapacityRequest(accessible_topology=on("node1")), None)
    assert asked.available_capacity == asked.maximum_volume_size.value == 40 * GIB
    asked = local.controller.GetCapacity(csi.GetCapacityRequest(), None)
    assert (asked.available_capacity, asked.maximum_volume_size.value) == (140 * GIB, 100 * GIB)


@pytest.mark.parametrize(
    ("wanted", "smallest", "expected"),
    [
        (size(), 1, GIB),
        (size(limit=1 << 20), 1, 1 << 20),
        (size((1 << 20) + 1), 1, 2 << 20),
        (size(64 << 20), SMALLEST, SMALLEST),
    ],
)
def test_capacity_is_rounded_up(wanted: csi.CapacityRange, smallest: int, expected: int) -> None:
    assert controller.size_of(wanted, smallest) == expected


def test_limit_below_the_smallest_file_system_is_refused() -> None:
    with pytest.raises(StorageError) as refused:
        controller.size_of(size(1 << 20, 64 << 20), SMALLEST)
    assert refused.value.code == "OUT_OF_RANGE"


# ---- copying


@pytest.mark.parametrize("kind", ["local", "shared"])
@pytest.mark.parametrize("block", [False, True])
@pytest.mark.parametrize("by_snapshot", [False, True])
def test_copy_has_the_sources_data_and_is_independent(
    tmp_path: Path, kind: str, block: bool, by_snapshot: bool
) -> None:
    made = lab(kind, tmp_path)
    capabilities = [capability(block=block)]
    origin = made.volume("origin", volume_capabilities=capabilities, capacity_range=size(GIB))
    written = made.data(origin) if made.data(origin).is_file() else made.data(origin) / "disk.img"
    write(written, b"first")
    source = snapshot(made, origin) if by_snapshot else origin
    if by_snapshot:
        write(written, b"later")
    copy = made.volume("copy", volume_capabilities=capabilities, volume_content_source=source_of(source),
                       capacity_range=size(2 * GIB))  # fmt: skip
    assert copy.content_source == source_of(source)
    assert copy.capacity_bytes == 2 * GIB
    theirs = made.data(copy) if made.data(copy).is_file() else made.data(copy) / "disk.img"
    assert read(theirs) == b"first"
    write(theirs, b"other")
    assert read(written) == (b"later" if by_snapshot else b"first")


def write(path: Path, text: bytes) -> None:
    with path.open("r+b" if path.exists() else "xb") as stream:
        stream.write(text)


def read(path: Path) -> bytes:
    with path.open("rb") as stream:
        return stream.read(5)


def test_mounted_file_system_is_frozen_during_copy(local: Lab, tmp_path: Path) -> None:
    volume = local.volume(accessibility_requirements=csi.TopologyRequirement(requisite=[on("node2")]))
    local.stage(volume, "node2", tmp_path / "staging")
    snapshot(local, volume)
    assert local.hosts["node1"].freezes == [local.data(volume)], "the controller runs on the other node"


def test_copy_with_smaller_size_or_other_mode_is_refused(local: Lab) -> None:
    origin = local.volume("origin", capacity_range=size(2 * GIB))
    with pytest.raises(StorageError) as refused:
        local.volume("small", volume_content_source=source_of(origin), capacity_range=size(GIB, GIB))
    assert refused.value.code == "OUT_OF_RANGE"
    with pytest.raises(StorageError, match="other volumeMode"):
        local.volume("device", volume_content_source=source_of(origin), volume_capabilities=[capability(block=True)])
    with pytest.raises(StorageError) as refused:
        local.volume("orphan", volume_content_source=source_of(csi.Snapshot(snapshot_id="snap-1")))
    assert refused.value.code == "NOT_FOUND"


def test_snapshot_outlives_its_volume_and_is_idempotent(local: Lab) -> None:
    origin = local.volume("origin")
    taken = snapshot(local, origin)
    assert snapshot(local, origin) == taken
    assert taken.ready_to_use and taken.size_bytes == origin.capacity_bytes
    with pytest.raises(StorageError) as refused:
        snapshot(local, local.volume("other"))
    assert refused.value.code == "ALREADY_EXISTS"
    local.controller.DeleteVolume(csi.DeleteVolumeRequest(volume_id=origin.volume_id), None)
    listed = local.controller.ListSnapshots(csi.ListSnapshotsRequest(source_volume_id=origin.volume_id), None)
    assert [entry.snapshot for entry in listed.entries] == [taken]
    for _ in range(2):
        local.controller.DeleteSnapshot(csi.DeleteSnapshotRequest(snapshot_id=taken.snapshot_id), None)
    assert not local.pools.snapshots()


# ---- growing, listing, attaching, deleting


@pytest.mark.parametrize(
    ("kind", "block", "node_too"),
    [("local", False, True), ("shared", True, True), ("shared", False, False)],
)
def test_controller_expands_volume(tmp_path: Path, kind: str, block: bool, node_too: bool) -> None:
    made = lab(kind, tmp_path)
    volume = made.volume(volume_capabilities=[capability(block=block)], capacity_range=size(GIB))

    def expand(bytes_wanted: int) -> csi.ControllerExpandVolumeResponse:
        request = csi.ControllerExpandVolumeRequest(volume_id=volume.volume_id, capacity_range=size(bytes_wanted))
        return made.controller.ControllerExpandVolume(request, None)

    told = expand(2 * GIB)
    assert (told.capacity_bytes, told.node_expansion_required) == (2 * GIB, node_too)
    assert expand(GIB).capacity_bytes == 2 * GIB, "a volume never shrinks"
    with pytest.raises(StorageError) as refused:
        expand(200 * GIB)
    assert refused.value.code == "OUT_OF_RANGE"
    assert made.pools.volume(volume.volume_id).capacity == 2 * GIB


def test_lists_are_paged() -> None:
    assert controller.page("abcde", "", 2) == ("ab", "2")
    assert controller.page("abcde", "2", 2) == ("cd", "4")
    assert controller.page("abcde", "4", 2) == ("e", "")
    assert controller.page("abcde", "", 0) == ("abcde", "")
    for token in ("x", "6", "-1", "²"):
        with pytest.raises(StorageError) as refused:
            controller.page("abcde", token, 2)
        assert refused.value.code == "ABORTED"


def test_single_node_volume_is_attached_to_one_node(shared: Lab) -> None:
    volume = shared.volume()
    shared.attach(volume, "node1")
    shared.attach(volume, "node1")
    with pytest.raises(StorageError, match="attached to node1") as refused:
        shared.attach(volume, "node2")
    assert refused.value.code == "FAILED_PRECONDITION"
    with pytest.raises(StorageError) as refused:
        shared.attach(volume, "node1", readonly=True)
    assert refused.value.code == "ALREADY_EXISTS"
    listed = shared.controller.ListVolumes(csi.ListVolumesRequest(), None)
    assert [list(entry.status.published_node_ids) for entry in listed.entries] == [["node1"]]


def test_multi_node_volume_is_attached_to_both(shared: Lab) -> None:
    many = capability(MODES.MULTI_NODE_MULTI_WRITER)
    volume = shared.volume(volume_capabilities=[many])
    for node in ("node1", "node2"):
        shared.attach(volume, node, volume_capability=many)
    assert sorted(shared.pools.volume(volume.volume_id).published) == ["node1", "node2"]
    with pytest.raises(StorageError, match="no node 'node3'"):
        shared.attach(volume, "node3", volume_capability=many)


def test_volumes_per_node_are_limited(shared: Lab) -> None:
    volumes = [shared.volume(f"disk-{number}") for number in range(MOST_VOLUMES + 1)]
    for volume in volumes[:-1]:
        shared.attach(volume, "node1")
    shared.attach(volumes[0], "node1")
    with pytest.raises(StorageError, match="the maximum") as refused:
        shared.attach(volumes[-1], "node1")
    assert refused.value.code == "RESOURCE_EXHAUSTED"
    shared.attach(volumes[-1], "node2")


def test_detach_removes_staging_of_a_failed_node(shared: Lab, tmp_path: Path) -> None:
    volume = shared.volume()
    shared.attach(volume, "node1")
    shared.stage(volume, "node1", tmp_path / "staging")
    request = csi.ControllerUnpublishVolumeRequest(volume_id=volume.volume_id, node_id="node1")
    for _ in range(2):
        shared.controller.ControllerUnpublishVolume(request, None)
    shared.attach(volume, "node2")
    assert shared.pools.volume(volume.volume_id).staged == ()


def test_volume_in_use_is_not_deleted(local: Lab, tmp_path: Path) -> None:
    volume = local.volume(accessibility_requirements=csi.TopologyRequirement(requisite=[on("node1")]))
    local.stage(volume, "node1", tmp_path / "staging")
    request = csi.DeleteVolumeRequest(volume_id=volume.volume_id)
    with pytest.raises(StorageError, match="in use on node1") as refused:
        local.controller.DeleteVolume(request, None)
    assert refused.value.code == "FAILED_PRECONDITION"
    unstage = csi.NodeUnstageVolumeRequest(volume_id=volume.volume_id, staging_target_path=str(tmp_path / "staging"))
    local.nodes["node1"].NodeUnstageVolume(unstage, None)
    for _ in range(2):
        local.controller.DeleteVolume(request, None)
    assert not local.pools.volumes()
    assert not list(local.pools.root.glob("pools/*/volumes/*"))


@pytest.mark.parametrize("identity", ["../../../etc", "vol-1", "", "vol-" + "g" * 24])
def test_identifier_that_is_a_path_is_refused(local: Lab, identity: str) -> None:
    with pytest.raises(StorageError, match="there is no volume"):
        local.pools.volume(identity)
    assert local.pools.snapshot(identity) is None

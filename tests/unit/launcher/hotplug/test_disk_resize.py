import asyncio
from typing import Any

import pytest

from launcher.domain_builder.process import BuildError
from launcher.hotplug import disk_resize
from launcher.hypervisor.connection import HypervisorError, Unavailable
from protos import launcher_pb2 as pb

GIB = 1 << 30


def request(**capacities: str) -> pb.SyncRequest:
    return pb.SyncRequest(claims=claims(**capacities))


def claims(**capacities: str) -> list[pb.Claim]:
    return [pb.Claim(volume=name, name=f"claim-{name}", capacity=text) for name, text in capacities.items()]


class World:
    """Fake hypervisor and builder: `sizes` by volume, `fails`: libvirt's error by disk."""

    def __init__(self, sizes: dict[str, int], fails: dict[str, Exception] | None = None) -> None:
        self.sizes, self.fails = sizes, fails or {}
        self.asked: list[dict[str, int]] = []
        self.resized: list[tuple[str, int]] = []
        self.done: dict[str, tuple[int, str]] = {}

    async def build(self, question: dict[str, Any]) -> dict[str, Any]:
        self.asked.append(question["grow"])
        return {"sizes": {name: size for name, size in self.sizes.items() if name in question["grow"]}}

    async def resize_disk(self, domain: str, target: str, size: int) -> None:
        if target in self.fails:
            raise self.fails[target]
        self.resized.append((target, size))

    async def follow(self, wish: pb.SyncRequest, *disks: pb.DiskInfo) -> None:
        def done(disk: pb.DiskInfo) -> None:
            self.done[disk.volume] = (disk.size, disk.capacity)

        await disk_resize.follow(self, self, "vm", wish, disks, done)  # type: ignore[arg-type]


def disk(volume: str, target: str, capacity: str = "1Gi") -> pb.DiskInfo:
    return pb.DiskInfo(volume=volume, target=target, size=GIB, capacity=capacity)


def test_unchanged_claims_need_no_build() -> None:
    world = World({"a": 2 * GIB})
    asyncio.run(world.follow(request(a="1Gi"), disk("a", "vda"), disk("root", "vdb", "")))
    assert (world.asked, world.done) == ([], {})


def test_only_disks_with_changed_claims_grow() -> None:
    world = World({"a": 2 * GIB, "b": 3 * GIB})
    asyncio.run(world.follow(request(a="2Gi", b="1Gi"), disk("a", "vda"), disk("b", "vdb")))
    assert world.asked == [{"a": GIB}]
    assert world.resized == [("vda", 2 * GIB)]
    assert world.done == {"a": (2 * GIB, "2Gi")}


def test_claim_without_more_space_is_recorded() -> None:
    world = World({})
    asyncio.run(world.follow(request(a="1024Mi"), disk("a", "vda")))
    assert world.resized == []
    assert world.done == {"a": (GIB, "1024Mi")}


def test_failing_disk_does_not_block_others_and_is_retried() -> None:
    world = World({"a": 2 * GIB, "b": 2 * GIB}, {"vda": HypervisorError("no medium")})
    with pytest.raises(BuildError, match=rf"volume a: its disk cannot be grown to {2 * GIB} bytes: no medium"):
        asyncio.run(world.follow(request(a="2Gi", b="2Gi"), disk("a", "vda"), disk("b", "vdb")))
    assert world.done == {"b": (2 * GIB, "2Gi")}


def test_unavailable_daemon_raises_unavailable() -> None:
    with pytest.raises(Unavailable):
        asyncio.run(World({"a": 2 * GIB}, {"vda": Unavailable("gone")}).follow(request(a="2Gi"), disk("a", "vda")))


def test_report_has_the_known_capacities() -> None:
    disks = [disk("a", "vda", ""), disk("root", "vdb", "old")]
    disk_resize.note(disks, claims(a="1Gi"))
    assert [each.capacity for each in disks] == ["1Gi", ""]

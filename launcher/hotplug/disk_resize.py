"""Grows the disks of a running domain with their claims."""

from collections.abc import Callable, Iterable

from launcher.domain_builder.answers import GrownDisks
from launcher.domain_builder.process import BuildError, DomainBuilder, question_of
from launcher.hypervisor.connection import Hypervisor, HypervisorError, Unavailable
from launcher.log import log
from protos import launcher_pb2 as pb


def note(disks: Iterable[pb.DiskInfo], claims: Iterable[pb.Claim]) -> None:
    """Set the capacities of the claims on a report's disks."""
    capacities = {claim.volume: claim.capacity for claim in claims}
    for disk in disks:
        disk.capacity = capacities.get(disk.volume, "")


async def follow(
    hypervisor: Hypervisor,
    builder: DomainBuilder,
    domain: str,
    request: pb.SyncRequest,
    disks: Iterable[pb.DiskInfo],
    done: Callable[[pb.DiskInfo], None],
) -> None:
    """Grow disks whose claim has grown, and call `done` with each one that is up to date.

    A failing disk does not block the others. Raises BuildError, which names every volume that failed; Unavailable.
    """
    capacities = {claim.volume: claim.capacity for claim in request.claims}
    changed = [disk for disk in disks if capacities.get(disk.volume, "") != disk.capacity]
    if not changed:
        return
    answer: GrownDisks = await builder.build(
        question_of(request) | {"grow": {disk.volume: disk.size for disk in changed}}
    )
    failures = []
    for disk in changed:
        size = answer["sizes"].get(disk.volume, disk.size)
        try:
            if size != disk.size:
                await hypervisor.resize_disk(domain, disk.target, size)
                log("info", "resized a disk", volume=disk.volume, bytes=size, before=disk.size)
        except Unavailable:
            raise
        except HypervisorError as error:
            failures.append(f"volume {disk.volume}: its disk cannot be grown to {size} bytes: {error}")
        else:
            capacity = capacities.get(disk.volume, "")
            done(pb.DiskInfo(volume=disk.volume, target=disk.target, size=size, capacity=capacity))
    if failures:
        raise BuildError("INTERNAL", "; ".join(failures))

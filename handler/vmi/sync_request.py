"""The Sync request of a VMI: what the launcher needs to know of it. Pure."""

from api.kubevirt.vmi import VirtualMachineInstance
from api.kubevirt.volumes import claim_name
from api.schema import codec
from protos import launcher_pb2 as pb


def build(vmi: VirtualMachineInstance, nics: list[pb.Nic]) -> pb.SyncRequest:
    """The request for a VMI with these NICs."""
    return pb.SyncRequest(
        vmi=codec.encode(vmi),
        vmi_uid=vmi.metadata.uid or "",
        nics=nics,
        links=[pb.Link(name=name, up=up) for name, up in links(vmi).items()],
        claims=claims(vmi),
    )


def links(vmi: VirtualMachineInstance) -> dict[str, bool]:
    """Whether the link of each NIC should be up. A NIC in state absent has none; that of a host device is always up."""
    nics = vmi.spec.domain.devices.interfaces or ()
    return {nic.name: nic.state != "down" or nic.sriov is not None for nic in nics if nic.state != "absent"}


def claims(vmi: VirtualMachineInstance) -> list[pb.Claim]:
    """The claims of the VMI's volumes."""
    known = capacities(vmi)
    return [
        pb.Claim(volume=volume.name, name=name, capacity=known.get(volume.name, ""))
        for volume in vmi.spec.volumes or ()
        if (name := claim_name(volume))
    ]


def capacities(vmi: VirtualMachineInstance) -> dict[str, str]:
    """Capacity of the claim of each volume, as far as it is known."""
    found = {}
    for entry in (vmi.status.volumeStatus if vmi.status else None) or ():
        info = entry.persistentVolumeClaimInfo
        if info and info.capacity and (amount := info.capacity.get("storage")):
            found[entry.name] = str(amount)
    return found

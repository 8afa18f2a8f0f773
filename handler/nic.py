"""The protocol's message about a NIC, from what the pod network has become."""

from api import names
from api.vmi import VirtualMachineInstance
from handler.network import TAP, Attachment
from protos import launcher_pb2 as pb


def messages(vmi: VirtualMachineInstance, attachment: Attachment | None) -> list[pb.Nic]:
    """One message for each interface of the VMI."""
    if attachment is None:
        return []
    request = attachment.request
    nic = pb.Nic(name=request.name, tap=TAP, mac=request.mac, mtu=attachment.mtu, queues=request.queues)
    if attachment.guest4 is not None:
        nic.dhcp4.CopyFrom(_dhcp4(vmi, attachment))
    if attachment.guest6 is not None:
        nic.dhcp6.CopyFrom(_dhcp6(attachment))
    return [nic]


def _dhcp4(vmi: VirtualMachineInstance, attachment: Attachment) -> pb.Dhcp4:
    gateway = attachment.gateway4
    return pb.Dhcp4(
        device=attachment.bridge,
        server=str(gateway.ip),
        address=str(attachment.guest4),
        prefix=gateway.network.prefixlen,
        router=str(gateway.ip),
        dns=map(str, attachment.resolver.servers4),
        search=attachment.resolver.search,
        hostname=hostname(vmi),
        lease_seconds=0,
    )


def _dhcp6(attachment: Attachment) -> pb.Dhcp6:
    return pb.Dhcp6(
        device=attachment.bridge,
        address=str(attachment.guest6),
        dns=map(str, attachment.resolver.servers6),
        search=attachment.resolver.search,
    )


def hostname(vmi: VirtualMachineInstance) -> str:
    """The guest's host name, as the pod's: the spec's, else the VMI's name as one DNS label."""
    return vmi.spec.hostname or (vmi.metadata.name or "").replace(".", "-")[:63].rstrip("-")


def status(attachment: Attachment) -> dict[str, object]:
    """The interface's entry in the VMI's status, as far as the node knows it."""
    entry: dict[str, object] = {
        "name": attachment.request.name,
        "mac": attachment.request.mac,
        "infoSource": names.INFO_DOMAIN,
        "linkState": "up",
        "podInterfaceName": attachment.bridge.removeprefix("k6t-"),
        "queueCount": attachment.request.queues,
    }
    if attachment.addresses:
        entry |= {"ipAddress": attachment.addresses[0], "ipAddresses": list(attachment.addresses)}
    return entry

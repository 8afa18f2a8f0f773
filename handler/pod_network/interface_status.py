"""Builds the launcher's NIC messages and the VMI's `status.interfaces` from the configured pod networks."""

from collections.abc import Mapping
from dataclasses import replace

from api import names
from api.kubevirt.vmi import VirtualMachineInstance
from api.kubevirt.vmi_status import VirtualMachineInstanceNetworkInterface as InterfaceStatus
from handler.launchers.reports import LauncherState, NicInfo
from handler.pod_network.resolv_conf import with_subdomain
from handler.pod_network.setup import PodNetworkState
from handler.pod_network.vm_interface import VmInterface
from protos import launcher_pb2 as pb


def messages(vmi: VirtualMachineInstance, made: PodNetworkState) -> list[pb.Nic]:
    """One message per requested interface of the VMI, in order."""
    settings = with_subdomain(made.resolver, vmi.spec.subdomain, vmi.metadata.namespace or "")
    made = replace(made, resolver=settings)
    return [_message(vmi, made, attachment) for attachment in made.attachments]


def _message(vmi: VirtualMachineInstance, made: PodNetworkState, attachment: VmInterface) -> pb.Nic:
    nic = pb.Nic(
        name=attachment.request.name,
        tap=attachment.tap,
        mac=attachment.mac,
        mtu=attachment.mtu,
        queues=attachment.request.queues,
    )
    if attachment.lease4 is not None:
        nic.dhcp4.CopyFrom(_dhcp4(vmi, made, attachment))
    if attachment.lease6 is not None:
        nic.dhcp6.CopyFrom(_dhcp6(made, attachment))
    return nic


def _dhcp4(vmi: VirtualMachineInstance, made: PodNetworkState, attachment: VmInterface) -> pb.Dhcp4:
    lease = attachment.lease4
    assert lease is not None
    # The cluster's name servers are reachable through the pod network only.
    resolver = made.resolver if attachment.request.on_pod_network else None
    return pb.Dhcp4(
        device=attachment.bridge,
        server=str(lease.server),
        address=str(lease.address.ip),
        prefix=lease.address.network.prefixlen,
        router=str(lease.router or ""),
        # RFC 3442: gateway 0.0.0.0 means that the destination is on the link.
        routes=[
            pb.Route(destination=str(way.destination), gateway=str(way.gateway or "0.0.0.0")) for way in lease.routes
        ],
        dns=map(str, resolver.servers4) if resolver else (),
        search=resolver.search if resolver else (),
        hostname=hostname(vmi),
        lease_seconds=0,
    )


def _dhcp6(made: PodNetworkState, attachment: VmInterface) -> pb.Dhcp6:
    resolver = made.resolver if attachment.request.on_pod_network else None
    return pb.Dhcp6(
        device=attachment.bridge,
        address=str(attachment.lease6),
        dns=map(str, resolver.servers6) if resolver else (),
        search=resolver.search if resolver else (),
    )


def hostname(vmi: VirtualMachineInstance) -> str:
    """The guest's host name, same as the pod's: spec.hostname, else the VMI's name as one DNS label."""
    return vmi.spec.hostname or (vmi.metadata.name or "").replace(".", "-")[:63].rstrip("-")


def status(
    vmi: VirtualMachineInstance, made: PodNetworkState, state: LauncherState, told: frozenset[str] = frozenset()
) -> list[InterfaceStatus]:
    """The entries of `status.interfaces`. The pod network is first, so that the first address is the pod's.

    Interfaces being unplugged follow, then those only the guest agent reports. `told`: the pod interfaces listed in
    the network-status annotation.
    """
    nics = {nic.name: nic for nic in state.nics}
    guests = {interface.mac: interface for interface in reversed(state.interfaces) if interface.mac}
    ordered = sorted(made.attachments, key=lambda attachment: not attachment.request.on_pod_network)
    entries = [
        _entry(vmi, attachment, nics.get(attachment.request.name), guests, attachment.interface in told)
        for attachment in ordered
    ]
    entries += [_departing(nics[name], guests) for name in made.going if name in nics]
    shown = {entry.interfaceName for entry in entries}
    return entries + [interface for interface in state.interfaces if interface.interfaceName not in shown]


def _entry(
    vmi: VirtualMachineInstance,
    attachment: VmInterface,
    nic: NicInfo | None,
    guests: Mapping[str, InterfaceStatus],
    told: bool,
) -> InterfaceStatus:
    request = attachment.request
    # An older launcher may report no NICs: its domain has the MAC that the handler configured.
    mac = attachment.mac or (nic.mac if nic else "")
    guest = guests.get(mac)
    # Behind NAT the guest's own address is not reachable, so the pod's addresses are reported. Without addresses
    # assigned by the network, only the guest knows its own.
    addresses = [str(address) for address in attachment.addresses]
    if not addresses and guest is not None and not request.on_pod_network:
        addresses = guest.ipAddresses or []
    return InterfaceStatus(
        name=request.name,
        linkState=_link(vmi, request.name, nic),
        mac=mac or None,
        podInterfaceName=attachment.interface or None,
        queueCount=None if request.hardware else (nic.queues if nic else 0) or request.queues,
        ipAddress=addresses[0] if addresses else None,
        ipAddresses=addresses or None,
        interfaceName=guest.interfaceName if guest else None,
        infoSource=_sources(guest, told),
    )


def _link(vmi: VirtualMachineInstance, name: str, nic: NicInfo | None) -> str:
    if nic is not None:
        return "up" if nic.link_up else "down"
    down = any(each.name == name and each.state == "down" for each in vmi.spec.domain.devices.interfaces or ())
    return "down" if down else "up"


def _departing(nic: NicInfo, guests: Mapping[str, InterfaceStatus]) -> InterfaceStatus:
    guest = guests.get(nic.mac)
    return InterfaceStatus(
        name=nic.name,
        linkState="up" if nic.link_up else "down",
        mac=nic.mac or None,
        interfaceName=guest.interfaceName if guest else None,
        infoSource=_sources(guest, told=False),
    )


def _sources(guest: InterfaceStatus | None, told: bool) -> str:
    """An entry's sources of information."""
    sources = [names.INFO_DOMAIN]
    if guest is not None:
        sources.append(names.INFO_GUEST_AGENT)
    if told:
        sources.append(names.INFO_MULTUS)
    return ", ".join(sources)

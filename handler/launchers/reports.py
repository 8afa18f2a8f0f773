"""Validation of a launcher's reports, which are untrusted, as is the guest behind them.

Strings are truncated and stripped of control characters, lists are limited, and malformed values are dropped. A report
does not identify its VM: the connection does.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from ipaddress import ip_interface

from api import names
from api.kubevirt.vmi_status import VirtualMachineInstanceGuestOSInfo as GuestOs
from api.kubevirt.vmi_status import VirtualMachineInstanceNetworkInterface as InterfaceStatus
from api.text import is_mac, printable
from protos import launcher_pb2 as pb
from protos import limits

MAX_INTERFACES, MAX_ADDRESSES = 32, 16
"""Those of a report that go into the VMI's status, which must stay small."""
MAX_DISKS = 128
MAX_QUEUES = 256
MAX_CAPACITY = 32
_WORD = re.compile(r"[A-Z][A-Za-z0-9]{0,63}")
_MACHINE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_TARGET = re.compile(r"[a-z][a-z0-9]{0,15}")
_NIC = re.compile(r"[A-Za-z0-9_-]{1,63}", re.ASCII)
_VOLUME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")


@dataclass(frozen=True)
class ReportedDisk:
    """A disk's target in the guest and its size in bytes. `capacity`: of its claim, as given to the launcher."""

    volume: str
    target: str
    size: int
    capacity: str = ""


@dataclass(frozen=True)
class NicInfo:
    """A NIC of the domain. `name`: of the VMI's interface."""

    name: str
    mac: str
    link_up: bool
    queues: int


@dataclass(frozen=True)
class LauncherState:
    """A checked report."""

    state: int = pb.DOMAIN_STATE_NONE
    reason: str = ""
    message: str = ""
    vmi_uid: str = ""
    accelerator: str = ""
    machine: str = ""
    agent: bool = False
    os: GuestOs = field(default_factory=GuestOs)
    interfaces: tuple[InterfaceStatus, ...] = ()
    """Those that the guest agent reports."""
    disks: tuple[ReportedDisk, ...] = ()
    nics: tuple[NicInfo, ...] = ()

    @property
    def runs(self) -> bool:
        """Whether the domain is running or paused."""
        return self.state in (pb.DOMAIN_STATE_RUNNING, pb.DOMAIN_STATE_PAUSED, pb.DOMAIN_STATE_IO_ERROR)

    @property
    def ended(self) -> bool:
        """Whether the domain has ended."""
        return self.state in (pb.DOMAIN_STATE_SHUTOFF, pb.DOMAIN_STATE_CRASHED)


# Field of the message: field of status.guestOSInfo.
_OS_FIELDS = {
    "name": "name",
    "id": "id",
    "version": "version",
    "version_id": "versionId",
    "pretty_name": "prettyName",
    "kernel_release": "kernelRelease",
    "kernel_version": "kernelVersion",
    "machine": "machine",
}


def text(value: str, limit: int = limits.STRING_BYTES) -> str:
    """`value` without unprintable characters, at most `limit` characters."""
    return printable(value, 2 * limit).strip()[:limit]


def check(report: pb.Report) -> LauncherState:
    """The report with all values bounded. Never raises."""
    known = report.state in pb.DomainState.values()
    return LauncherState(
        state=report.state if known else pb.DOMAIN_STATE_NONE,
        reason=report.reason if _WORD.fullmatch(report.reason) else "",
        message=text(report.message, limits.REASON_BYTES),
        vmi_uid=text(report.vmi_uid, 64),
        accelerator=report.accelerator if report.accelerator in ("kvm", "tcg") else "",
        machine=report.machine if _MACHINE.fullmatch(report.machine) else "",
        agent=report.agent_connected,
        os=_os(report.guest.os),
        interfaces=tuple(_interfaces(report.guest.interfaces)),
        disks=tuple(_disks(report.disks)),
        nics=tuple(_nics(report.nics)),
    )


def _os(info: pb.OsInfo) -> GuestOs:
    return GuestOs(**{ours: text(getattr(info, theirs)) or None for theirs, ours in _OS_FIELDS.items()})


def guest_interface(name: str, mac: str, addresses: Iterable[str]) -> InterfaceStatus:
    """The status of an interface that only the guest agent reports. Empty strings are left out."""
    given = [address for address in addresses if address]
    return InterfaceStatus(
        interfaceName=name,
        infoSource=names.INFO_GUEST_AGENT,
        mac=mac or None,
        ipAddress=given[0] if given else None,
        ipAddresses=given or None,
    )


def _interfaces(items: Iterable[pb.GuestInterface]) -> Iterable[InterfaceStatus]:
    for index, item in enumerate(items):
        if index >= MAX_INTERFACES:
            return
        mac = item.mac.lower()
        name = text(item.name, 64)
        if not name or name == "lo" or (mac and not is_mac(mac)):
            continue
        yield guest_interface(name, mac, map(_address, item.addresses[:MAX_ADDRESSES]))


def _address(value: str) -> str:
    try:
        interface = ip_interface(value[: limits.ADDRESS_BYTES])
    except ValueError:
        return ""
    return "" if interface.ip.is_loopback or "%" in value else str(interface.ip)


def _disks(items: Iterable[pb.DiskInfo]) -> Iterable[ReportedDisk]:
    for index, item in enumerate(items):
        if index >= MAX_DISKS:
            return
        if _VOLUME.fullmatch(item.volume) and _TARGET.fullmatch(item.target):
            yield ReportedDisk(item.volume, item.target, min(item.size, 2**63 - 1), text(item.capacity, MAX_CAPACITY))


def _nics(items: Iterable[pb.NicInfo]) -> Iterable[NicInfo]:
    seen: set[str] = set()
    for index, item in enumerate(items):
        if index >= limits.NICS:
            return
        mac = item.mac.lower()
        if not _NIC.fullmatch(item.name) or item.name in seen:
            continue
        seen.add(item.name)
        yield NicInfo(item.name, mac if is_mac(mac) else "", item.link_up, min(item.queues, MAX_QUEUES))

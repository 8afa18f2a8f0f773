"""NIC hot-plug: plugs and unplugs NICs of a running domain and sets link states, as the VMI requests."""

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from launcher.domain_builder.answers import BuiltNics
from launcher.domain_builder.process import BuildError, DomainBuilder, question_of
from launcher.hotplug.live_nics import ALIAS, LiveNic, with_link
from launcher.hypervisor.connection import Hypervisor, HypervisorError, Unavailable
from launcher.log import log
from launcher.network.dhcp_service import DhcpError, DhcpService
from protos import launcher_pb2 as pb

DhcpOptions = dict[str, list[list[Any]]]
"""Extra DHCP options by interface: code and hexadecimal value."""
_NO_PORT = "no free PCI slot; restart the VM, or unplug another device first"


@dataclass(frozen=True)
class NicChanges:
    """Changes to a domain. `links`: NICs with their desired link state."""

    plug: tuple[str, ...] = ()
    unplug: tuple[str, ...] = ()
    links: tuple[tuple[LiveNic, bool], ...] = ()

    def __bool__(self) -> bool:
        return bool(self.plug or self.unplug or self.links)


def plan(links: Mapping[str, bool], tapped: Iterable[str], live: Iterable[LiveNic]) -> NicChanges:
    """The changes that make a domain have the NICs of `links`, with their links up or down.

    A NIC without a tap (`tapped`) is not plugged in yet.
    """
    there = {nic.name: nic for nic in live}
    return NicChanges(
        plug=tuple(name for name in tapped if name in links and name not in there),
        unplug=tuple(name for name in there if name not in links),
        links=tuple(
            (there[name], up)
            for name, up in links.items()
            if name in there and there[name].model != "sriov" and there[name].link_up != up
        ),
    )


def _links(request: pb.SyncRequest) -> dict[str, bool]:
    return {link.name: link.up for link in request.links}


def infos_of(live: Iterable[LiveNic]) -> list[pb.NicInfo]:
    """The NICs for a Report."""
    return [
        pb.NicInfo(name=nic.name, mac=nic.mac, link_up=nic.link_up, queues=nic.queues, model=nic.model) for nic in live
    ]


class NicHotplug:
    """Changes the NICs of a running domain.

    `live`: the last known NICs; None: unknown. `free_ports`: PCI Express ports for more, when `live` was read.
    `unplugging`: NICs that the guest was asked to release.
    """

    def __init__(self, hypervisor: Hypervisor, builder: DomainBuilder, dhcp: DhcpService) -> None:
        self._hypervisor, self._builder, self._dhcp = hypervisor, builder, dhcp
        self.live: tuple[LiveNic, ...] | None = None
        self.free_ports = 0
        self.unplugging: set[str] = set()

    def serve(self, request: pb.SyncRequest, options: DhcpOptions) -> None:
        """Serve DHCP on the NICs of `request.links`. Raises DhcpError, after starting the others."""
        links = _links(request)
        self._dhcp.serve([nic for nic in request.nics if nic.name in links], options)

    async def follow(
        self, domain: str, request: pb.SyncRequest, options: DhcpOptions, poll: Callable[[], Awaitable[None]]
    ) -> None:
        """Make the NICs match `request`, and add the DHCP options of new ones to `options`.

        A failing NIC does not block the others. `poll` updates `live`. Raises BuildError, which names every interface
        that failed; Unavailable.
        """
        if self.live is None or self._plan(request):
            await poll()
        changes = self._plan(request)
        failures: list[BuildError] = []
        devices = await self._devices(request, changes.plug, options, failures) if changes.plug else {}
        try:
            self.serve(request, options)
        except DhcpError as error:
            failures.append(BuildError("INTERNAL", str(error)))
        for nic, up in changes.links:
            work = self._hypervisor.update_device(domain, with_link(nic, up))
            await self._try(work, nic.name, f"its link cannot be set {'up' if up else 'down'}", failures)
        self.unplugging.intersection_update(changes.unplug)
        for name in changes.unplug:
            work = self._hypervisor.detach_device(domain, ALIAS + name, name in self.unplugging)
            if await self._try(work, name, "it cannot be unplugged", failures):
                self.unplugging.add(name)
        taps, free_ports = {nic.name: nic.tap for nic in request.nics}, self.free_ports
        for name, xml in devices.items():
            work = self._hypervisor.attach_device(domain, xml)
            why = _NO_PORT if free_ports <= 0 else ""
            free_ports -= await self._try(work, name, f"it cannot be plugged into {taps[name]}", failures, why)
        if changes:
            log("info", "changed network cards", plugged=list(devices), unplugging=list(changes.unplug))
            await poll()
        if failures:
            raise _joined(failures)

    def _plan(self, request: pb.SyncRequest) -> NicChanges:
        return plan(_links(request), [nic.name for nic in request.nics], self.live or ())

    async def _devices(
        self, request: pb.SyncRequest, plug: tuple[str, ...], options: DhcpOptions, failures: list[BuildError]
    ) -> dict[str, str]:
        """libvirt's XML of new NICs, by interface."""
        question = question_of(request) | {"plug": plug}
        try:
            answer: BuiltNics = await self._builder.build(question)
        except BuildError as error:
            failures.append(error)
            return {}
        failures += [BuildError("INVALID_ARGUMENT", message) for message in answer["errors"].values()]
        devices = answer["devices"]
        for name in plug:
            options.pop(name, None)
        options |= {name: found for name, found in answer["dhcp_options"].items() if name in devices}
        return devices

    async def _try(
        self, work: Awaitable[None], name: str, what: str, failures: list[BuildError], why: str = ""
    ) -> bool:
        """Whether `work` succeeds. `why`: the known cause if it fails, instead of libvirt's message."""
        try:
            await work
        except Unavailable:
            raise
        except HypervisorError as error:
            failures.append(BuildError("INTERNAL", f"interface {name}: {what}: {why or error}"))
            return False
        return True


def _joined(failures: list[BuildError]) -> BuildError:
    codes = {error.code for error in failures}
    code = codes.pop() if len(codes) == 1 else "INTERNAL"
    return BuildError(code, "; ".join(str(error) for error in failures))

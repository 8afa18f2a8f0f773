"""NIC hot-plug: plugs and unplugs NICs of a running domain and sets link states, as the VMI requests."""

import json
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any

from launcher.domain_builder.answers import BuiltNics
from launcher.domain_builder.process import BuildError, DomainBuilder
from launcher.domain_builder.sync_request import question_of
from launcher.hotplug.live_nics import ALIAS, LiveNic, with_link
from launcher.hypervisor.connection import Hypervisor, HypervisorError, Unavailable
from launcher.log import log
from launcher.network.dhcp_service import DhcpError, DhcpService
from protos import launcher_pb2 as pb

DhcpOptions = dict[str, list[list[Any]]]
"""Extra DHCP options by interface: code and hexadecimal value."""


@dataclass(frozen=True)
class NicChanges:
    """Changes to a domain. `links`: NICs with their desired link state."""

    plug: tuple[str, ...] = ()
    unplug: tuple[str, ...] = ()
    links: tuple[tuple[LiveNic, bool], ...] = ()

    def __bool__(self) -> bool:
        return bool(self.plug or self.unplug or self.links)


def states_of(vmi: bytes) -> dict[str, str]:
    """up, down or absent for each interface of a VMI. Raises BuildError if the VMI is malformed."""
    try:
        interfaces = json.loads(vmi)["spec"]["domain"]["devices"].get("interfaces") or []
        return {interface["name"]: interface.get("state") or "up" for interface in interfaces}
    except (ValueError, LookupError, TypeError, AttributeError):
        raise BuildError("INVALID_ARGUMENT", "spec.domain.devices.interfaces: must be a list with names") from None


def plan(states: dict[str, str], tapped: Iterable[str], live: Iterable[LiveNic]) -> NicChanges:
    """The changes that make a domain match the VMI. A NIC without a tap (`tapped`) is not plugged in yet."""
    there = {nic.name: nic for nic in live}
    wanted = {name: state for name, state in states.items() if state != "absent"}
    return NicChanges(
        plug=tuple(name for name in tapped if name in wanted and name not in there),
        unplug=tuple(name for name in there if name not in wanted),
        links=tuple(
            (there[name], state == "up")
            for name, state in wanted.items()
            if name in there and there[name].model != "sriov" and there[name].link_up != (state == "up")
        ),
    )


def infos_of(live: Iterable[LiveNic]) -> list[pb.NicInfo]:
    """The NICs for a Report."""
    return [
        pb.NicInfo(name=nic.name, mac=nic.mac, link_up=nic.link_up, queues=nic.queues, model=nic.model) for nic in live
    ]


class NicHotplug:
    """Changes the NICs of a running domain. `live`: the last known NICs; None: unknown."""

    def __init__(self, hypervisor: Hypervisor, builder: DomainBuilder, dhcp: DhcpService) -> None:
        self._hypervisor, self._builder, self._dhcp = hypervisor, builder, dhcp
        self.live: tuple[LiveNic, ...] | None = None

    def serve(self, request: pb.SyncRequest, options: DhcpOptions) -> None:
        """Serve DHCP on the interfaces that are not absent. Raises DhcpError, after starting the others."""
        states = states_of(request.vmi)
        self._dhcp.serve([nic for nic in request.nics if states.get(nic.name, "absent") != "absent"], options)

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
        for name in changes.unplug:
            work = self._hypervisor.detach_device(domain, ALIAS + name)
            await self._try(work, name, "it cannot be unplugged", failures)
        taps = {nic.name: nic.tap for nic in request.nics}
        for name, xml in devices.items():
            work = self._hypervisor.attach_device(domain, xml)
            await self._try(work, name, f"it cannot be plugged into {taps[name]}", failures)
        if changes:
            log("info", "changed network cards", plugged=list(devices), unplugging=list(changes.unplug))
            await poll()
        if failures:
            raise _joined(failures)

    def _plan(self, request: pb.SyncRequest) -> NicChanges:
        return plan(states_of(request.vmi), [nic.name for nic in request.nics], self.live or ())

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

    async def _try(self, work: Awaitable[None], name: str, what: str, failures: list[BuildError]) -> None:
        try:
            await work
        except Unavailable:
            raise
        except HypervisorError as error:
            words = str(error)
            if "No more available PCI" in words:
                words = "no free PCI slot; restart the VM, or unplug another device first"
            failures.append(BuildError("INTERNAL", f"interface {name}: {what}: {words}"))


def _joined(failures: list[BuildError]) -> BuildError:
    codes = {error.code for error in failures}
    code = codes.pop() if len(codes) == 1 else "INTERNAL"
    return BuildError(code, "; ".join(str(error) for error in failures))

"""Sets up a VM's networks in the launcher's network namespace: from the pod's interfaces to the guest's taps.

Reads the current state, composes the desired state and applies the difference, so a restarted handler changes nothing.
`masquerade` and `bridge` compose what their binding needs; `netns` handles the namespace.
"""

import os
import pathlib
from collections.abc import Collection
from dataclasses import dataclass, field, replace

from api import names
from api.errors import NetworkError
from api.kubevirt.networks import pod_interface
from handler.pod_network import bridge, masquerade, nftables, resolv_conf
from handler.pod_network.interface_record import InterfaceRecord, SavedInterface
from handler.pod_network.interface_request import InterfaceRequest
from handler.pod_network.netns import (
    CurrentState,
    DesiredState,
    InterfaceDevices,
    NetnsStep,
    Perform,
    difference,
    observe,
    perform,
    with_sysctls,
)
from handler.pod_network.resolv_conf import ResolverConfig
from handler.pod_network.vm_interface import VmInterface
from kit import proc
from kit.netlink.route import Link, RtnetlinkSocket

HOST = "/proc/1/ns/net"
"""The node's network namespace, seen from a pod with hostPID."""
# The launcher serves DHCP on port 67 without any capability.
_LOW_PORTS = {"net/ipv4/ip_unprivileged_port_start": "0"}


class InterfaceMissing(NetworkError):
    """A requested network has no interface in the pod yet."""

    def __init__(self, request: InterfaceRequest) -> None:
        super().__init__(f"interface {request.name}: the pod has no interface {request.interface} for it yet")
        self.name = request.name


@dataclass(frozen=True)
class PodNetworkState:
    """The result: the VM's interfaces, and those being unplugged."""

    attachments: tuple[VmInterface, ...] = ()
    resolver: ResolverConfig = field(default_factory=ResolverConfig)
    going: tuple[str, ...] = ()
    """Names of interfaces no longer requested whose devices remain because the launcher still uses them."""
    changed: tuple[str, ...] = ()

    @property
    def own(self) -> VmInterface | None:
        """The interface on the pod network."""
        return next((each for each in self.attachments if each.request.on_pod_network), None)


def attach(
    process: proc.Process,
    requests: Collection[InterfaceRequest],
    record: InterfaceRecord,
    pod_uid: str,
    used: Collection[str] | None = (),
    host: str = HOST,
    perform: Perform = perform,
) -> PodNetworkState:
    """Make the process's network namespace match the requests. Raises NetworkError.

    `used`: names of the interfaces in the launcher's domain, whose devices are kept; None, if unknown: all are kept.
    `host`: the node's own namespace. `perform` applies the steps.
    Changes the calling thread's namespace: call it through `kit.proc.isolated`.
    """
    try:
        settings = resolv_conf.read(process)
    except OSError:
        settings = ResolverConfig()  # the guest starts without DNS
    try:
        owner = process.host_user(names.LAUNCHER_UID), process.host_group(names.LAUNCHER_UID)
        with proc.closing(process.namespace("net")) as namespace:
            _refuse_the_nodes(namespace, host)
            proc.setns(namespace, proc.CLONE_NEWNET)
        with RtnetlinkSocket() as route:
            return _Setup(route, requests, record, pod_uid, used, perform, owner).run(settings)
    except OSError as error:
        raise NetworkError(f"the pod's networks cannot be set up: {error.strerror or error}") from error


def _refuse_the_nodes(namespace: int, host: str) -> None:
    """Refuse the node's and the handler's own namespace: a pod with hostNetwork would have them rebuilt."""
    for ours in (host, "/proc/self/ns/net"):
        if os.path.samestat(os.fstat(namespace), pathlib.Path(ours).stat()):
            raise NetworkError("the launcher is in the node's network namespace")


class _Setup:
    """One call of `attach`, inside the namespace."""

    def __init__(
        self,
        route: RtnetlinkSocket,
        requests: Collection[InterfaceRequest],
        record: InterfaceRecord,
        pod_uid: str,
        used: Collection[str] | None,
        perform: Perform,
        owner: tuple[int, int],
    ) -> None:
        self._route = route
        self._requests = requests
        self._record = record
        self._pod_uid = pod_uid
        self._used = used
        self._perform = perform
        self._owner = owner

    def run(self, settings: ResolverConfig) -> PodNetworkState:
        current = observe(self._route)
        taken = self._taken(current)
        going = self._going(current)
        attachments, desired = compose(current, self._requests, taken, self._pod_uid, going)
        desired = replace(desired, owner=self._owner)
        if self._used is None:
            desired = replace(desired, kept=frozenset(current.links))
        current = with_sysctls(current, desired)
        steps = difference(current, desired)
        if not any(step.verb == "rules" for step in steps) and not nftables.in_place(desired.tables):
            steps.insert(sum(step.verb == "delete" for step in steps), NetnsStep("rules"))
        for step in steps:
            self._perform(self._route, desired, step)
        new = {step.device for step in steps if step.verb == "bridge"}
        attachments = tuple(replace(each, fresh=each.bridge in new) for each in attachments)
        return PodNetworkState(attachments, settings, tuple(going), tuple(map(str, steps)))

    def _going(self, current: CurrentState) -> dict[str, tuple[str, str]]:
        """(bridge, tap) by name of interfaces no longer requested that the launcher still uses."""
        asked = {request.name for request in self._requests}
        pairs = {
            name: bridge.names_of(pod_interface(name), on_pod_network=False)
            for name in self._used or ()
            if name not in asked
        }
        return {name: pair for name, pair in pairs.items() if pair[1] in current.links}

    def _taken(self, current: CurrentState) -> dict[str, SavedInterface]:
        """The saved state of bridged interfaces by name, written before anything is changed."""
        known = self._record.read()
        kept = {
            name: taken
            for name, taken in known.items()
            if name in current.links and bridge.is_same(current.links[name], taken, self._pod_uid)
        }
        for request in self._requests:
            if request.bridged:
                link = link_of(current, request, self._requests, kept)
                kept[link.name] = bridge.recorded(current, request, link, kept.get(link.name))
        if kept != known:
            self._record.write(kept)
        return kept


def compose(
    current: CurrentState,
    requests: Collection[InterfaceRequest],
    taken: dict[str, SavedInterface],
    pod_uid: str,
    going: dict[str, tuple[str, str]],
) -> tuple[tuple[VmInterface, ...], DesiredState]:
    """The desired state for all requests. Pure. Raises NetworkError."""
    attachments: list[VmInterface] = []
    devices: list[InterfaceDevices] = []
    masquerades: list[nftables.NftTable] = []
    bridged: list[nftables.BridgedInterface] = []
    sysctls: dict[str, str] = dict(_LOW_PORTS)
    for request in requests:
        if request.hardware:
            attachments.append(VmInterface(request, request.interface, request.mac))
            continue
        link = link_of(current, request, requests, taken)
        if request.translated is not None:
            attachment, made, table = masquerade.compose(current, link, request)
            masquerades.append(table)
            sysctls |= masquerade.space_sysctls(made)
        else:
            attachment, made, rules = bridge.compose(link, request, taken[link.name], pod_uid)
            bridged.append(rules)
            sysctls |= bridge.space_sysctls()
        attachments.append(attachment)
        devices.append(made)
    bridged += bridge.lingering(going, taken)
    # A record means that there were bridges, whose rules may still be in place.
    tables = masquerades + ([nftables.BridgeRules(tuple(bridged))] if bridged or taken else [])
    kept = frozenset(name for pair in going.values() for name in pair)
    return tuple(attachments), DesiredState(tuple(devices), sysctls, tuple(tables), kept)


def link_of(
    current: CurrentState,
    request: InterfaceRequest,
    requests: Collection[InterfaceRequest],
    taken: dict[str, SavedInterface],
) -> Link:
    """The pod interface of a request. Raises NetworkError, InterfaceMissing."""
    if request.interface:
        link = current.links.get(request.interface)
        if link is None:
            raise InterfaceMissing(request)
        return link
    others = {other.interface for other in requests if other.interface}
    # Without its address, the pod's own interface is identified by the record.
    for name in taken:
        if name in current.links and name not in others and not _is_secondary(name):
            return current.links[name]
    return current.uplink({name for name in current.links if name in others or _is_secondary(name)})


def _is_secondary(name: str) -> bool:
    return len(name) == len(pod_interface("")) and name.startswith("pod")

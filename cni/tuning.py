"""cnv-tuning: changes an interface created by another plugin, and restores it on DEL."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Self

from cni import errors, host, mac_filter, spec, sysctl, tuning_state
from cni.errors import CniError
from cni.host import HostResources
from cni.invocation import Invocation, root_of
from cni.rollback import log_errors
from cni.spec import CniResult, TuningConf
from cni.tuning_state import Folder, Saved
from kit import proc
from kit.netlink import route
from kit.netlink.nft import Nft

FREE_ARGS = frozenset({"mac"})
"""`args.cni` keys that a pod may always set; others must be in the configuration's `allowedArgs`."""


@dataclass(frozen=True)
class DesiredTuning:
    """Desired settings; None: unchanged."""

    network: str
    sysctls: tuple[sysctl.Sysctl, ...]
    mac: str | None
    mtu: int | None
    promisc: bool | None
    allmulti: bool | None
    txqlen: int | None
    data_dir: str


def desired_tuning(conf: TuningConf, call: Invocation) -> DesiredTuning:
    """The desired settings. Precedence: args.cni, runtimeConfig, CNI_ARGS, configuration. Raises CniError (7)."""
    mac, where = conf.mac, "$.mac"
    if call.arguments.get("MAC"):
        mac, where = call.arguments["MAC"], "CNI_ARGS: MAC"
    if conf.runtimeConfig and conf.runtimeConfig.mac:
        mac, where = conf.runtimeConfig.mac, "$.runtimeConfig.mac"
    over = (conf.args.cni if conf.args else None) or spec.Tunables()
    _permit(over, conf)
    if over.mac:
        mac, where = over.mac, "$.args.cni.mac"
    mtu = over.mtu if over.mtu is not None else conf.mtu
    if mtu and mtu < 68:
        raise CniError(errors.CONFIG, f"$.mtu: {mtu} is less than the minimum of 68")
    return DesiredTuning(
        network=conf.name or "",
        sysctls=tuple(sysctl.parse((over.sysctl if over.sysctl is not None else conf.sysctl) or {}, call.interface)),
        mac=spec.mac(mac, where) if mac else None,
        mtu=mtu or None,
        # The reference plugin treats `false` as absent, and never disables promiscuous mode.
        promisc=(over.promisc if over.promisc is not None else conf.promisc) or None,
        allmulti=over.allmulti if over.allmulti is not None else conf.allmulti,
        txqlen=over.txQLen if over.txQLen is not None else conf.txQLen,
        data_dir=conf.dataDir or tuning_state.DATA_DIR,
    )


def _permit(over: spec.Tunables, conf: TuningConf) -> None:
    """Raises CniError (7) for keys of `args.cni` that the network does not allow: `args.cni` comes from the pod's
    annotation (`cni-args`), the configuration from the network's author."""
    allowed = FREE_ARGS | set(conf.allowedArgs or ())
    refused = [name for name in over.__struct_fields__ if getattr(over, name) is not None and name not in allowed]
    if refused:
        raise CniError(
            errors.CONFIG,
            f"$.args.cni.{refused[0]}: a pod may not set it on the network {conf.name}, unless the network's "
            f'configuration has "allowedArgs": ["{refused[0]}"]',
        )


def add(call: Invocation, resources: HostResources) -> bytes:
    """ADD; rolled back on failure. Raises CniError, OSError."""
    conf = spec.decode(call.stdin, TuningConf)
    if conf.prevResult is None:
        raise CniError(errors.CONFIG, "$.prevResult: required; cnv-tuning must follow another plugin in the chain")
    result = spec.result(conf.prevResult, conf.cniVersion or "", errors.CONFIG, "$.prevResult")
    desired = desired_tuning(conf, call)
    # Opened here, since a socket belongs to the namespace in which it is created.
    with _folder(call, resources, desired.data_dir) as (folder, root), resources.nft.lend() as guards:
        sysctl.permit(list(desired.sysctls), root)
        host.run_in_netns(call.netns, _Change(call, desired, folder, guards).apply)
    return _rewritten(result, call, desired).encode()


@contextmanager
def _folder(call: Invocation, resources: HostResources, data_dir: str) -> Iterator[tuple[Folder, int]]:
    try:
        root = root_of(call.peer)
    except OSError as error:
        raise CniError(errors.LATER, f"the caller disconnected: {error}") from None
    with proc.closing(root):
        yield Folder(root, data_dir, resources.data_roots), root


class ContainerNetns:
    """rtnetlink socket and sysctls of the container's network namespace, for the calling thread."""

    def __enter__(self) -> Self:
        self.route = route.RtnetlinkSocket()
        self.sysctls = sysctl.Place()
        return self

    def __exit__(self, *details: object) -> None:
        self.route.close()
        self.sysctls.__exit__(*details)


@dataclass
class _Change:
    """A running ADD. `apply` runs in the container's namespace."""

    call: Invocation
    desired: DesiredTuning
    folder: Folder
    guards: Nft

    def apply(self) -> None:
        with ContainerNetns() as inside, ExitStack() as undo:
            link = inside.route.link(self.call.interface)
            if link is None:
                raise CniError(errors.CONTAINER, f"the container has no {self.call.interface}")
            before = _before(self.desired, link, inside.sysctls)
            if before is not None:
                self._save(undo, before)
                undo.callback(log_errors, _write_sysctls, inside.sysctls, before.sysctl)
                undo.callback(log_errors, _restore_link, inside.route, link.index, before)
            for each in self.desired.sysctls:
                inside.sysctls.write(each.path, each.value)
            self._link(undo, inside.route, link)
            undo.pop_all()

    def _save(self, undo: ExitStack, before: Saved) -> None:
        container, interface = self.call.attachment
        earlier = self.folder.load(container, interface)
        if earlier is not None:  # an interrupted ADD saved the original state
            before = _merged(before, earlier)
        self.folder.save(container, interface, before)
        undo.callback(log_errors, self.folder.forget, container, interface)

    def _link(self, undo: ExitStack, one: route.RtnetlinkSocket, link: route.Link) -> None:
        desired = self.desired
        if desired.mac and desired.mac != link.mac:
            # Filter first: the interface must not send with another MAC than the new one.
            name = host.host_name(desired.network, *self.call.attachment)
            if mac_filter.change(self.guards, name, desired.mac):
                undo.callback(log_errors, mac_filter.change, self.guards, name, link.mac)
        flags, mask = _flags(desired.promisc, desired.allmulti)
        if desired.mac or desired.mtu or desired.txqlen is not None or mask:
            one.do(
                route.set_link(
                    index=link.index,
                    mac=desired.mac or "",
                    mtu=desired.mtu or 0,
                    txqlen=desired.txqlen,
                    flags=flags,
                    mask=mask,
                )
            )


def _flags(promisc: bool | None, allmulti: bool | None) -> tuple[int, int]:
    flags = (route.IFF_PROMISC if promisc else 0) | (route.IFF_ALLMULTI if allmulti else 0)
    mask = (route.IFF_PROMISC if promisc is not None else 0) | (route.IFF_ALLMULTI if allmulti is not None else 0)
    return flags, mask


def _before(desired: DesiredTuning, link: route.Link, sysctls: sysctl.Place) -> Saved | None:
    """The current values of what will be changed; None if nothing will be."""
    found = Saved(
        network=desired.network,
        mac=link.mac if desired.mac else None,
        mtu=link.mtu if desired.mtu else None,
        promisc=bool(link.flags & route.IFF_PROMISC) if desired.promisc is not None else None,
        allmulti=bool(link.flags & route.IFF_ALLMULTI) if desired.allmulti is not None else None,
        txQLen=link.txqlen if desired.txqlen is not None else None,
        sysctl={each.path: _read(sysctls, each) for each in desired.sysctls},
    )
    return None if found == Saved(network=desired.network) else found


def _read(sysctls: sysctl.Place, each: sysctl.Sysctl) -> str:
    try:
        return sysctls.read(each.path)
    except OSError as error:
        raise CniError(errors.CONFIG, f"$.sysctl: {each.name} cannot be read in the container: {error}") from None


def _merged(now: Saved, earlier: Saved) -> Saved:
    values = {
        name: earlier_value if (earlier_value := getattr(earlier, name)) is not None else getattr(now, name)
        for name in ("mac", "mtu", "promisc", "allmulti", "txQLen")
    }
    return Saved(network=now.network, sysctl=now.sysctl | earlier.sysctl, **values)


def _write_sysctls(sysctls: sysctl.Place, values: dict[str, str]) -> None:
    for path, value in reversed(values.items()):
        sysctls.write(path, value)


def _restore_link(one: route.RtnetlinkSocket, index: int, saved: Saved) -> None:
    flags, mask = _flags(saved.promisc, saved.allmulti)
    if saved.mac or saved.mtu or saved.txQLen is not None or mask:
        one.do(
            route.set_link(
                index=index, mac=saved.mac or "", mtu=saved.mtu or 0, txqlen=saved.txQLen, flags=flags, mask=mask
            )
        )


def _rewritten(result: CniResult, call: Invocation, desired: DesiredTuning) -> CniResult:
    for interface in result.interfaces:
        if interface["name"] == call.interface and interface.get("sandbox"):
            if desired.mac:
                interface["mac"] = desired.mac
            if desired.mtu and "mtu" in interface:
                interface["mtu"] = desired.mtu
    return result


def delete(call: Invocation, resources: HostResources) -> bytes:
    """DEL: restore the saved state, if state and interface exist. Raises CniError, OSError."""
    conf = spec.decode_for_del(call.stdin, TuningConf, {"dataDir": object})
    if conf is None:
        return b""
    container, interface = call.attachment
    try:
        manager = _folder(call, resources, conf.dataDir or tuning_state.DATA_DIR)
        with manager as (folder, _):
            saved = _loaded(folder, container, interface)
            if saved is not None and call.netns >= 0:
                with resources.nft.lend() as guards:
                    host.run_in_netns(call.netns, lambda: _restore(call, guards, conf.name or "", saved))
            folder.forget(container, interface)
    except CniError as error:
        if error.code != errors.CONFIG:  # an invalid dataDir, which ADD refused as well
            raise
    return b""


def _loaded(folder: Folder, container: str, interface: str) -> Saved | None:
    try:
        return folder.load(container, interface)
    except CniError:
        return None  # damaged or foreign: cannot be restored, and must not block pod deletion


def _restore(call: Invocation, guards: Nft, network: str, saved: Saved) -> None:
    with ContainerNetns() as inside:
        link = inside.route.link(call.interface)
        if link is None:
            return
        log_errors(_write_sysctls, inside.sysctls, saved.sysctl)
        log_errors(_restore_link, inside.route, link.index, saved)
        if saved.mac:
            log_errors(mac_filter.change, guards, host.host_name(network, *call.attachment), saved.mac)


def check(call: Invocation, resources: HostResources) -> bytes:
    """CHECK: everything is as ADD left it. Raises CniError (101 with all differences)."""
    conf = spec.decode(call.stdin, TuningConf)
    if conf.prevResult is None:
        raise CniError(errors.CONFIG, "$.prevResult: CHECK needs it")
    desired = desired_tuning(conf, call)
    if found := host.run_in_netns(call.netns, lambda: _faults(call, desired)):
        raise CniError(errors.DIFFERS, "; ".join(found))
    return b""


def _faults(call: Invocation, desired: DesiredTuning) -> list[str]:
    with ContainerNetns() as inside:
        link = inside.route.link(call.interface)
        values = [(each, _read(inside.sysctls, each)) for each in desired.sysctls if link]
    if link is None:
        return [f"{call.interface} is not in the container"]
    compared = (
        ("the MAC", desired.mac, link.mac),
        ("the MTU", desired.mtu, link.mtu),
        ("promisc", desired.promisc, bool(link.flags & route.IFF_PROMISC)),
        ("allmulti", desired.allmulti, bool(link.flags & route.IFF_ALLMULTI)),
        ("txQLen", desired.txqlen, link.txqlen),
    )
    found = [
        f"{call.interface} has {what} {actual} instead of {expected}"
        for what, expected, actual in compared
        if expected not in (None, actual)
    ]
    for each, value in values:
        if value.split() != each.value.split():
            found.append(f"{each.name} is {value!r} instead of {each.value!r}")
    return found


def collect(call: Invocation, resources: HostResources) -> bytes:
    """GC: remove saved states of the network's attachments that are not in the runtime's list."""
    conf = spec.decode(call.stdin, TuningConf)
    valid = {tuning_state.file_name(each.containerID, each.ifname) for each in conf.valid or []}
    with _folder(call, resources, conf.dataDir or tuning_state.DATA_DIR) as (folder, _):
        folder.collect(conf.name or "", valid)
    return b""


def status(call: Invocation, resources: HostResources) -> bytes:
    """STATUS: whether ADD can work. Raises CniError (50)."""
    conf = spec.decode(call.stdin, TuningConf)
    with _folder(call, resources, conf.dataDir or tuning_state.DATA_DIR):
        return b""

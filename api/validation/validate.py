"""Validation of decoded objects: all faults at once, each with its path. An empty list means valid."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from api import bridges, names
from api.catalogs.machine_types import machine_warning
from api.errors import Fault
from api.k8s.meta import ObjectMeta
from api.kubevirt.devices import Disk
from api.kubevirt.kubevirt import KubeVirt
from api.kubevirt.migration import VirtualMachineInstanceMigration
from api.kubevirt.networks import Interface
from api.kubevirt.vm import VirtualMachine
from api.kubevirt.vmi import Probe, VirtualMachineInstance, VirtualMachineInstanceSpec
from api.schema.codec import to_dict
from api.validation import syntax, unsupported
from api.validation.annotations import annotation_faults, annotation_warnings
from api.validation.domain_rules import check, domain_faults
from api.validation.network_rules import network_faults
from api.validation.scheduling_rules import scheduling_faults
from api.validation.storage_rules import storage_faults

if TYPE_CHECKING:
    from api.kubevirt.configuration import KubeVirtConfiguration

# The name becomes the value of label vm.kubevirt.io/name, limited to 63 characters.
MAX_NAME = 63
# The API server's limit for all annotations of an object.
MAX_ANNOTATION_BYTES = 256 * 1024
# Seconds (a day), or consecutive probes.
MAX_PROBE = 86400


def validate_vm(vm: VirtualMachine, config: "KubeVirtConfiguration | None" = None) -> list[Fault]:
    """All faults of a VirtualMachine; `config` is the installation's."""
    spec = vm.spec
    faults = list(_name(vm.metadata))
    if spec.running is not None and spec.runStrategy is not None:
        faults.append(Fault("spec.runStrategy", names.FAULT_INVALID, "running and runStrategy are mutually exclusive"))
    faults += unsupported.VM.faults(to_dict(spec))
    template = spec.template
    if template.metadata:
        faults += _metadata(template.metadata, "spec.template.metadata")
    if template.spec is None:
        missing = "spec.template.spec" if template.metadata else "spec.template"
        faults.append(Fault(missing, names.FAULT_REQUIRED, "required"))
    else:
        faults += _spec_faults(template.spec, "spec.template.spec", vm.metadata.namespace, config)
    return faults


def validate_vmi(vmi: VirtualMachineInstance, config: "KubeVirtConfiguration | None" = None) -> list[Fault]:
    """All faults of a VirtualMachineInstance; `config` is the installation's."""
    annotations = annotation_faults(vmi.metadata.annotations, "metadata.annotations")
    return [*_name(vmi.metadata), *annotations, *validate_vmi_spec(vmi.spec, "spec", vmi.metadata.namespace, config)]


def validate_vmi_spec(
    spec: VirtualMachineInstanceSpec,
    path: str = "spec",
    namespace: str | None = None,
    config: "KubeVirtConfiguration | None" = None,
) -> list[Fault]:
    """All faults of a VMI's spec, with or without defaults; `path` is its path."""
    return [*unsupported.VMI.faults(to_dict(spec), path), *_spec_faults(spec, path, namespace, config)]


def validate_kubevirt(kubevirt: KubeVirt, _config: "KubeVirtConfiguration | None" = None) -> list[Fault]:
    """Unsupported and invalid settings of the KubeVirt object."""
    return [*bridges.faults(kubevirt.metadata.annotations), *unsupported.KUBEVIRT.faults(to_dict(kubevirt.spec))]


def validate_migration(
    _migration: VirtualMachineInstanceMigration, _config: "KubeVirtConfiguration | None" = None
) -> list[Fault]:
    """Refuses every migration: not implemented."""
    return [Fault("spec", names.FAULT_NOT_SUPPORTED, "live migration is not supported by this version of hyperlet")]


def warnings(vm: VirtualMachine, config: "KubeVirtConfiguration | None" = None) -> list[str]:
    """Warnings about a valid VM, for the admission response."""
    return list(_warnings(vm, config))


def _spec_faults(
    spec: VirtualMachineInstanceSpec, path: str, namespace: str | None, config: "KubeVirtConfiguration | None"
) -> Iterator[Fault]:
    yield from domain_faults(spec, path, config)
    yield from storage_faults(spec, path)
    yield from network_faults(spec, path, namespace, config)
    yield from _boot_order(spec, path)
    yield from _devices(spec, path)
    yield from scheduling_faults(spec, path)
    yield from _dns(spec, path)
    yield from _probes(spec, path)
    grace = spec.terminationGracePeriodSeconds
    if grace is not None and grace > names.MAX_GRACE_SECONDS:
        yield Fault(
            f"{path}.terminationGracePeriodSeconds",
            names.FAULT_INVALID,
            f"{grace} exceeds the maximum of {names.MAX_GRACE_SECONDS} seconds (one day)",
        )


def _name(metadata: ObjectMeta) -> Iterator[Fault]:
    if metadata.name and len(metadata.name) > MAX_NAME:
        yield Fault("metadata.name", names.FAULT_INVALID, f"must be at most {MAX_NAME} characters")


def _metadata(metadata: ObjectMeta, path: str) -> Iterator[Fault]:
    """Labels and annotations of a template; the API server checks only those of the object."""
    for key, value in (metadata.labels or {}).items():
        yield from check(syntax.label_key(key), f"{path}.labels")
        yield from check(syntax.label_value(value), f"{path}.labels.{key[:80]}")
    for key in metadata.annotations or ():
        yield from check(syntax.label_key(key), f"{path}.annotations")
    if sum(len(key) + len(value) for key, value in (metadata.annotations or {}).items()) > MAX_ANNOTATION_BYTES:
        yield Fault(
            f"{path}.annotations", names.FAULT_INVALID, f"must be at most {MAX_ANNOTATION_BYTES} bytes in total"
        )
    yield from annotation_faults(metadata.annotations, f"{path}.annotations")


def _boot_order(spec: VirtualMachineInstanceSpec, path: str) -> Iterator[Fault]:
    seen: dict[int, str] = {}
    devices = spec.domain.devices
    lists: list[tuple[str, Sequence[Disk | Interface]]] = [
        ("disks", devices.disks or ()),
        ("interfaces", devices.interfaces or ()),
    ]
    for field, entries in lists:
        for index, entry in enumerate(entries):
            order = entry.bootOrder
            if order is None:
                continue
            if order in seen:
                yield Fault(
                    f"{path}.domain.devices.{field}[{index}].bootOrder",
                    names.FAULT_DUPLICATE,
                    f"{order} is already used by {seen[order]!r}",
                )
            seen.setdefault(order, entry.name[:63])


def _devices(spec: VirtualMachineInstanceSpec, path: str) -> Iterator[Fault]:
    devices, here = spec.domain.devices, f"{path}.domain.devices"
    seen: set[str] = set()
    for index, entry in enumerate(devices.inputs or ()):
        yield from check(syntax.device_name(entry.name), f"{here}.inputs[{index}].name")
        if entry.name in seen:
            yield Fault(
                f"{here}.inputs[{index}].name", names.FAULT_DUPLICATE, f"duplicate input name {entry.name[:63]!r}"
            )
        seen.add(entry.name)
    watchdog = devices.watchdog
    if watchdog is not None:
        yield from check(syntax.device_name(watchdog.name), f"{here}.watchdog.name")


def _dns(spec: VirtualMachineInstanceSpec, path: str) -> Iterator[Fault]:
    for field in ("hostname", "subdomain"):
        value = getattr(spec, field)
        if value is not None:
            yield from check(syntax.dns_label(value), f"{path}.{field}")
    config = spec.dnsConfig
    servers = (config.nameservers if config else None) or []
    if spec.dnsPolicy == "None" and not servers:
        yield Fault(
            f"{path}.dnsConfig.nameservers",
            names.FAULT_REQUIRED,
            "required: dnsPolicy None needs at least one name server",
        )
    if len(servers) > 3:
        yield Fault(f"{path}.dnsConfig.nameservers", names.FAULT_INVALID, "must have at most three name servers")
    for index, server in enumerate(servers):
        yield from check(syntax.ip_address(server), f"{path}.dnsConfig.nameservers[{index}]")
    for index, search in enumerate((config.searches if config else None) or ()):
        yield from check(syntax.object_name(search.removesuffix(".")), f"{path}.dnsConfig.searches[{index}]")


def _probes(spec: VirtualMachineInstanceSpec, path: str) -> Iterator[Fault]:
    named = {port.name for nic in spec.domain.devices.interfaces or () for port in nic.ports or () if port.name}
    for field, probe in (("livenessProbe", spec.livenessProbe), ("readinessProbe", spec.readinessProbe)):
        if probe is not None:
            yield from _probe(probe, named, f"{path}.{field}")
    threshold = spec.livenessProbe.successThreshold if spec.livenessProbe else None
    if threshold is not None and threshold > 1:
        yield Fault(f"{path}.livenessProbe.successThreshold", names.FAULT_INVALID, "must be 1 for a liveness probe")
    if spec.startStrategy is not None and spec.livenessProbe is not None:
        yield Fault(
            f"{path}.startStrategy",
            names.FAULT_INVALID,
            "not supported with livenessProbe: a guest that starts paused fails the probe",
        )


def _probe(probe: Probe, named: set[str], path: str) -> Iterator[Fault]:
    for field in ("initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"):
        number = getattr(probe, field)
        if number is not None and number > MAX_PROBE:
            yield Fault(f"{path}.{field}", names.FAULT_INVALID, f"{number} exceeds the maximum of {MAX_PROBE}")
    actions = (probe.httpGet, probe.tcpSocket, probe.exec, probe.guestAgentPing)
    if sum(action is not None for action in actions) != 1:
        yield Fault(path, names.FAULT_INVALID, "exactly one of httpGet and tcpSocket is required")
    for field, action in (("httpGet", probe.httpGet), ("tcpSocket", probe.tcpSocket)):
        port = action.port if action is not None else 1
        if port not in named if isinstance(port, str) else not 1 <= port <= 65535:
            words = f"{str(port)[:63]!r} is neither a port number from 1 to 65535 nor the name of an interface's port"
            yield Fault(f"{path}.{field}.port", names.FAULT_INVALID, words)


def _warnings(vm: VirtualMachine, config: "KubeVirtConfiguration | None") -> Iterator[str]:
    if vm.spec.running is None and vm.spec.runStrategy is None:
        yield "neither spec.running nor spec.runStrategy is set: the VM stays halted"
    if vm.spec.running is not None:
        yield "spec.running is deprecated: use spec.runStrategy"
    template = vm.spec.template
    if template.metadata is not None:
        yield from annotation_warnings(template.metadata.annotations, "spec.template.metadata.annotations")
    spec = template.spec
    if spec is None:
        return
    written = spec.domain.machine.type if spec.domain.machine else None
    renamed = machine_warning(written) if written else None
    if renamed:
        yield f"spec.template.spec.domain.machine.type: {renamed}"
    resources = spec.domain.resources
    amounts = {
        "memory.guest": spec.domain.memory.guest if spec.domain.memory else None,
        "resources.requests.memory": (resources.requests or {}).get("memory") if resources else None,
        "resources.limits.memory": (resources.limits or {}).get("memory") if resources else None,
    }
    for field, amount in amounts.items():
        if isinstance(amount, str) and amount.endswith("B"):
            yield f"spec.template.spec.domain.{field}: {amount} is read as {amount[:-1]}: quantities have no suffix B"
    for disk in spec.domain.devices.disks or ():
        if disk.serial and len(disk.serial) > 20 and (disk.disk is None or disk.disk.bus in (None, "virtio")):
            yield f"disk {disk.name}: a virtio disk exposes only the first 20 characters of its serial"
    yield from _eviction_warnings(spec, config, "spec.template.spec")


def vmi_warnings(vmi: VirtualMachineInstance, config: "KubeVirtConfiguration | None" = None) -> list[str]:
    """Warnings about a valid VMI, for the admission response."""
    warnings_of_annotations = annotation_warnings(vmi.metadata.annotations, "metadata.annotations")
    return [*warnings_of_annotations, *_eviction_warnings(vmi.spec, config, "spec")]


def _eviction_warnings(
    spec: VirtualMachineInstanceSpec, config: "KubeVirtConfiguration | None", path: str
) -> Iterator[str]:
    """Effect of the eviction strategy on a drain: without live migration, LiveMigrate blocks evictions."""
    strategy, source = spec.evictionStrategy, f"{path}.evictionStrategy"
    if strategy is None and config is not None and config.evictionStrategy is not None:
        strategy, source = config.evictionStrategy, "the KubeVirt object's evictionStrategy"
    if strategy == names.EVICTION_LIVE_MIGRATE:
        yield (
            f"{source} is LiveMigrate, but live migration is not implemented: "
            "draining the node blocks until the VM is stopped"
        )
    elif strategy == names.EVICTION_LIVE_MIGRATE_IF_POSSIBLE:
        yield (
            f"{source} is LiveMigrateIfPossible, but live migration is not implemented: "
            "draining the node shuts the guest down"
        )
    elif strategy == names.EVICTION_EXTERNAL:
        yield f"{source} is External: draining the node waits for the controller that acts on status.evacuationNodeName"

"""The supported fields; every other field is refused with its path, never ignored.

`SUPPORTED_*` are the lists. Support for a new field adds its path there. A path includes the field and everything below
it; its parents are implied. List indexes are omitted: the path of `disks[3].name` is `disks.name`. `field=a|b` allows
only these values.
"""

import re
from collections.abc import Callable, Iterator
from typing import Any

from api import names
from api.errors import Fault

_DISK = "name bootOrder serial cache io disk.bus disk.readonly disk.pciAddress cdrom.bus cdrom.readonly cdrom.tray"
_INTERFACE = (
    "name masquerade bridge sriov model=virtio|e1000|e1000e|rtl8139|ne2k_pci|pcnet ports portRanges macAddress "
    "bootOrder pciAddress acpiIndex dhcpOptions state"
)
_DEVICES = (
    "rng autoattachGraphicsDevice autoattachSerialConsole autoattachMemBalloon autoattachInputDevice "
    "autoattachPodInterface disableHotplug inputs watchdog.name watchdog.i6300esb networkInterfaceMultiqueue"
)
_CLOUD_INIT = "userData userDataBase64 secretRef networkData networkDataBase64 networkDataSecretRef"
_HYPERV = (
    "relaxed vapic spinlocks vpindex runtime synic synictimer reset vendorid frequencies reenlightenment tlbflush ipi"
)


def _below(prefix: str, fields: str) -> list[str]:
    return [f"{prefix}.{field}" for field in fields.split()]


SUPPORTED_SPEC = [
    *_below("domain.cpu", "sockets cores threads model features"),
    *_below("domain.memory", "guest"),
    *_below("domain.resources", "requests.cpu requests.memory requests.ephemeral-storage overcommitGuestOverhead"),
    *_below("domain.resources", "limits.cpu limits.memory limits.ephemeral-storage"),
    "domain.machine.type",
    *_below("domain.firmware", "uuid serial kernelBoot bootloader.bios"),
    "domain.chassis",
    *_below("domain.features", "acpi apic.enabled apic.endOfInterrupt pvspinlock kvm.hidden"),
    *_below("domain.features.hyperv", _HYPERV),
    *_below("domain.clock", "utc timezone timer"),
    *_below("domain.devices", _DEVICES),
    *_below("domain.devices.disks", _DISK),
    *_below("domain.devices.interfaces", _INTERFACE),
    *_below("networks", "name pod multus.networkName"),
    *_below("volumes", "name containerDisk emptyDisk configMap secret"),
    *_below("volumes.persistentVolumeClaim", "claimName readOnly"),
    *_below("volumes.cloudInitNoCloud", _CLOUD_INIT),
    *_below("volumes.cloudInitConfigDrive", _CLOUD_INIT),
    "nodeSelector",
    "affinity",
    "tolerations",
    "topologySpreadConstraints",
    "priorityClassName",
    "schedulerName",
    "hostname",
    "subdomain",
    "dnsPolicy",
    "dnsConfig",
    "terminationGracePeriodSeconds",
    "startStrategy",
    "evictionStrategy",
    "architecture=amd64",
    *_below("livenessProbe", "tcpSocket httpGet"),
    *_below("readinessProbe", "tcpSocket httpGet"),
    *[
        f"{probe}.{field}"
        for probe in ("livenessProbe", "readinessProbe")
        for field in ("initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold")
    ],
]
SUPPORTED_VM = [
    "running",
    "runStrategy=Always|Halted|Manual|RerunOnFailure|Once",
    "template.metadata",
    *_below("template.spec", " ".join(SUPPORTED_SPEC)),
]
SUPPORTED_KUBEVIRT = [
    "imagePullPolicy",
    "imagePullSecrets",
    *_below("configuration", "cpuModel machineType evictionStrategy imagePullPolicy emulatedMachines"),
    *_below("configuration.developerConfiguration", "useEmulation cpuAllocationRatio featureGates logVerbosity"),
    *_below("configuration.network", "defaultNetworkInterface=masquerade|bridge permitBridgeInterfaceOnPodNetwork"),
    *_below("configuration.architectureConfiguration", "defaultArchitecture=amd64 amd64.machineType"),
]

# Reason or alternative, for the most common unsupported fields.
HINTS = {
    "dataVolumeTemplates": "create a PersistentVolumeClaim and reference it in volumes[].persistentVolumeClaim",
    "instancetype": "set CPU and memory in template.spec.domain",
    "preference": "set the preferred values in template.spec",
    "updateVolumesStrategy": "stop the VM to change its volumes",
    "runStrategy": "live migration into this cluster is not implemented",
    "domain.devices.gpus": "device passthrough is not implemented",
    "domain.devices.hostDevices": "device passthrough is not implemented",
    "domain.devices.filesystems": "file system sharing is not implemented: use a volume with a disk",
    "domain.devices.tpm": "TPM is not implemented",
    "domain.devices.logSerialConsole": "the serial console is always written to the pod's log",
    "domain.devices.interfaces.binding": "network binding plugins are not implemented",
    "domain.devices.interfaces.slirp": "KubeVirt removed it: use masquerade",
    "domain.devices.disks.lun": "SCSI passthrough is not implemented: use disk",
    "domain.firmware.bootloader.efi": "EFI is not implemented: use bios",
    "domain.launchSecurity": "memory encryption is not implemented",
    "domain.cpu.dedicatedCpuPlacement": "CPU pinning is not implemented",
    "domain.cpu.maxSockets": "CPU hot-plug is not implemented",
    "domain.memory.hugepages": "huge pages are not implemented",
    "domain.memory.maxGuest": "memory hot-plug is not implemented",
    "domain.ioThreadsPolicy": "I/O threads are not implemented: disks run in QEMU's main loop",
    "domain.devices.interfaces.passtBinding": "use masquerade",
    "domain.devices.interfaces.tag": "device metadata in cloud-init data is not implemented",
    "networks.multus.default": (
        "the pod always keeps the cluster network: remove `default`, and remove the network with `pod` to keep the "
        "guest off the pod network"
    ),
    "networks.resourceClaim": "set multus.networkName to a NetworkAttachmentDefinition",
    "volumes.dataVolume": "reference its PersistentVolumeClaim in volumes[].persistentVolumeClaim instead",
    "volumes.ephemeral": "ephemeral disks are not implemented",
    "volumes.hostDisk": "files of the node are not accessible to VMs",
    "volumes.serviceAccount": "use a secret volume",
    "volumes.persistentVolumeClaim.hotpluggable": "volume hot-plug is not implemented",
    "livenessProbe.guestAgentPing": "use tcpSocket or httpGet",
    "livenessProbe.exec": "use tcpSocket or httpGet",
    "readinessProbe.guestAgentPing": "use tcpSocket or httpGet",
    "readinessProbe.exec": "use tcpSocket or httpGet",
    "accessCredentials": "set keys and passwords in cloud-init data",
    "architecture": "only amd64 is implemented",
}

# `false` is equivalent to absence for every flag except these.
_FALSE_ASKS = {"domain.devices.logSerialConsole"}

# Flags whose given value is the fixed behaviour.
_TRUE_IS_SO = {"domain.devices.logSerialConsole"}

# Characters not allowed in XML, file names and log lines. Cloud-init data and annotations may contain newlines.
_CONTROL = re.compile("[\x00-\x1f\x7f\ufffe\uffff\ud800-\udfff]")
_CONTROL_IN_TEXT = re.compile("[\x00\ud800-\udfff]")
_TEXTS = {"userData", "networkData", "userDataBase64", "networkDataBase64"}

Node = dict[str, Any]
EVERYTHING: Node = {}


def _compile(paths: list[str]) -> Node:
    """Builds a tree of names; a leaf is EVERYTHING, or a frozenset of allowed values."""
    root: Node = {}
    for path in paths:
        path, _, values = path.partition("=")
        *parents, last = path.split(".")
        node = root
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = frozenset(values.split("|")) if values else EVERYTHING
    return root


def ignorable_matchers(spec: Any) -> list[str]:
    """Instancetype and preference matchers that are inferred from a volume with failure policy Ignore.

    Inference is not implemented. `virtctl create vm` adds such matchers to every VM.
    """
    if not isinstance(spec, dict):
        return []
    return [
        field
        for field in ("instancetype", "preference")
        if isinstance(matcher := spec.get(field), dict)
        and matcher.get("inferFromVolume")
        and matcher.get("inferFromVolumeFailurePolicy") == "Ignore"
        and not matcher.get("name")
    ]


class SupportedFields:
    """The supported fields of a kind's spec."""

    def __init__(self, paths: list[str], ignored: Callable[[Any], list[str]] | None = None) -> None:
        """`ignored(spec)`: top-level fields that are accepted without effect; admission removes them."""
        self._tree = _compile(paths)
        self._ignored = ignored

    def ignored(self, spec: Any) -> list[str]:
        """Top-level fields that are accepted without effect."""
        return self._ignored(spec) if self._ignored is not None else []

    def faults(self, spec: Any, path: str = "spec") -> Iterator[Fault]:
        """A Fault for every unsupported field of a spec, given as plain data."""
        skipped = self.ignored(spec)
        return _walk(self._tree, {key: spec[key] for key in spec if key not in skipped} if skipped else spec, path, "")

    def refuses(self, path: str) -> bool:
        """Whether a field below the spec (`a.b`, without indexes) is refused when it is set."""
        node: Any = self._tree
        for name in path.split("."):
            if node is EVERYTHING or isinstance(node, frozenset):
                return False
            node = node.get(name)
            if node is None:
                return _bare(path) not in _TRUE_IS_SO
        return False


VM = SupportedFields(SUPPORTED_VM, ignorable_matchers)
VMI = SupportedFields(SUPPORTED_SPEC)
KUBEVIRT = SupportedFields(SUPPORTED_KUBEVIRT)


def _walk(node: Any, value: Any, path: str, plain: str) -> Iterator[Fault]:
    if isinstance(value, dict):
        for key, child in value.items():
            here = f"{plain}.{key}" if plain else key
            below = node if node is EVERYTHING else node.get(key)
            if below is None:
                if _asks(child, here):
                    yield _refusal(f"{path}.{key}", here)
            elif isinstance(below, frozenset):
                # Non-strings have the wrong type, which is reported elsewhere.
                if isinstance(child, str) and child not in below:
                    yield _refusal(f"{path}.{key}", here, child)
            elif child.__class__ is str:
                # Fast path: control characters and lone surrogates are not printable.
                if not child.isprintable():
                    yield from _text(child, f"{path}.{key}", key)
            elif child.__class__ is dict or child.__class__ is list:
                yield from _walk(below, child, f"{path}.{key}", here)
    elif isinstance(value, list):
        for index, child in enumerate(value):
            if child.__class__ is str:
                if not child.isprintable():
                    yield from _text(child, f"{path}[{index}]", "")
            else:
                yield from _walk(node, child, f"{path}[{index}]", plain)


def _asks(value: Any, plain: str) -> bool:
    """Whether the value differs from the default."""
    if value is True and _bare(plain) in _TRUE_IS_SO:
        return False
    return value is not None and value != [] and (value is not False or _bare(plain) in _FALSE_ASKS)


def _text(value: str, path: str, key: str) -> Iterator[Fault]:
    text = key in _TEXTS or ".annotations." in path
    match = (_CONTROL_IN_TEXT if text else _CONTROL).search(value)
    if match:
        yield Fault(
            path,
            names.FAULT_INVALID,
            f"must not contain the control character U+{ord(match[0]):04X} at position {match.start()}",
        )


def _bare(plain: str) -> str:
    return plain.removeprefix("template.spec.")


def _refusal(path: str, plain: str, value: Any = None) -> Fault:
    hint = HINTS.get(_bare(plain))
    what = "not supported" if value is None else f"{str(value)[:60]!r} is not supported"
    return Fault(path, names.FAULT_NOT_SUPPORTED, f"{what} by this version of hyperlet" + (f": {hint}" if hint else ""))

"""What the builders are told besides the VMI: results of looking around in the pod."""

import msgspec

from launcher.paths import Paths


class InvalidVmi(Exception):
    """The VMI cannot be built. The message begins with the field's path."""


class NicFacts(msgspec.Struct, frozen=True):
    """What the handler made for one interface. `mtu` in bytes; 0: unknown. `queues`: 0 and 1 are a single queue."""

    name: str
    tap: str
    mac: str
    mtu: int = 0
    queues: int = 1


class DiskFacts(msgspec.Struct, frozen=True):
    """Where a volume's content is. `size` is the guest's, in bytes."""

    volume: str
    path: str
    format: str = "raw"
    block: bool = False
    size: int = 0
    readonly: bool = False
    ephemeral: bool = False
    """Lost with the pod anyway: flushing it to the host's disk would be for nothing."""
    direct: bool = False
    """The file system takes O_DIRECT."""
    backing: str = ""
    backing_format: str = ""


class PodFacts(msgspec.Struct, frozen=True):
    """Everything a domain depends on that is not in the VMI."""

    paths: Paths
    kvm: bool
    vhost: bool = False
    """The kernel may carry the packets: /dev/vhost-net is in the container."""
    emulator: str | None = None
    nics: list[NicFacts] = []
    functions: dict[str, str] = {}
    """Addresses on the node's PCI bus, by interface with SR-IOV."""
    disks: dict[str, DiskFacts] = {}
    kernel: str | None = None
    initrd: str | None = None

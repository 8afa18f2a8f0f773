"""Input of the builders besides the VMI: facts found in the pod."""

from typing import TypeVar

import msgspec

from launcher.paths import Paths

T = TypeVar("T")


class InvalidVmi(Exception):
    """The VMI cannot be built. The message starts with the field's path."""


def required(value: T | None, path: str) -> T:
    """`value`. Raises InvalidVmi if it is absent: defaults are applied before the VMI comes here (`api.defaults`)."""
    if value is None:
        raise InvalidVmi(f"{path}: required")
    return value


class NicFacts(msgspec.Struct, frozen=True):
    """A tap of the handler. `mtu` in bytes; 0: unknown. `queues`: 0 and 1 mean a single queue."""

    name: str
    tap: str
    mac: str
    mtu: int = 0
    queues: int = 1


class DiskFacts(msgspec.Struct, frozen=True):
    """Location of a volume's content. `size`: of the guest's disk, in bytes."""

    volume: str
    path: str
    format: str = "raw"
    block: bool = False
    size: int = 0
    readonly: bool = False
    ephemeral: bool = False
    """Deleted with the pod: need not be flushed to disk."""
    direct: bool = False
    """The file system supports O_DIRECT."""
    backing: str = ""
    backing_format: str = ""


class PodFacts(msgspec.Struct, frozen=True):
    """Everything a domain depends on that is not in the VMI."""

    paths: Paths
    kvm: bool
    vhost: bool = False
    """/dev/vhost-net is available."""
    emulator: str | None = None
    nics: list[NicFacts] = []
    functions: dict[str, str] = {}
    """Host PCI addresses of SR-IOV interfaces, by name."""
    disks: dict[str, DiskFacts] = {}
    kernel: str | None = None
    initrd: str | None = None

"""Machine types of the launcher's QEMU, and the mapping of other distributions' machine types to them.

A VM exported from another distribution may have a distribution-specific machine type. Its guest boots on the upstream
type of the QEMU version that it is based on. `tests/e2e/test_habits.py` verifies the list with the launcher's QEMU.
"""

import re
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from api.kubevirt.configuration import KubeVirtConfiguration

ALIAS = "q35"
EMULATED = ("q35*", "pc-q35*")
"""KubeVirt's default for `emulatedMachines`."""
_PREFIX = "pc-q35-"
_VERSIONS = (
    "2.4", "2.5", "2.6", "2.7", "2.8", "2.9", "2.10", "2.11", "2.12", "3.0", "3.1", "4.0", "4.0.1", "4.1", "4.2",
    "5.0", "5.1", "5.2", "6.0", "6.1", "6.2", "7.0", "7.1", "7.2", "8.0", "8.1", "8.2", "9.0", "9.1", "9.2", "10.0",
)  # fmt: skip
AVAILABLE = (ALIAS, *(_PREFIX + version for version in _VERSIONS))
# The QEMU version that each release shipped when it introduced the type.
_RHEL = {
    "7.3": "2.6", "7.4": "2.9", "7.5": "2.10", "7.6": "2.12",
    "8.0": "3.1", "8.1": "4.1", "8.2": "4.2", "8.3": "5.1", "8.4": "5.2", "8.5": "6.0", "8.6": "6.2",
    "9.0": "6.2", "9.2": "7.2", "9.4": "8.2", "9.6": "9.1", "9.8": "10.0",
    "10.0": "9.1", "10.2": "10.0",
}  # fmt: skip
_UBUNTU = {"focal": "4.2", "jammy": "6.2", "noble": "8.2", "plucky": "9.2"}
_RHEL_TYPE = re.compile(r"pc-q35-rhel([0-9]{1,2}\.[0-9]{1,2})\.[0-9]{1,2}", re.ASCII)
_UBUNTU_TYPE = re.compile(r"pc-q35-([a-z]+)(-hpb|-v2|-hpb-v2)?", re.ASCII)


def machine_type(written: str) -> str:
    """The machine type of the domain: the given one, or the upstream type of another distribution's."""
    return _PREFIX + version if (version := _elsewhere(written)) else written


def _elsewhere(written: str) -> str | None:
    """The upstream type of another distribution's; for an unknown release, that of the preceding one."""
    rhel = _RHEL_TYPE.fullmatch(written)
    if rhel:
        wanted = _number(rhel[1])
        known = [release for release in _RHEL if _number(release)[0] == wanted[0] and _number(release) <= wanted]
        return _RHEL[max(known, key=_number)] if known else None
    ubuntu = _UBUNTU_TYPE.fullmatch(written)
    return _UBUNTU.get(ubuntu[1]) if ubuntu else None


def _number(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


def machine_problem(written: str, config: "KubeVirtConfiguration | None") -> str | None:
    """Why a machine type is invalid, or None. `config` may restrict the types by pattern."""
    patterns = _patterns(config)
    if not any(fnmatchcase(written, pattern) for pattern in patterns):
        allowed = ", ".join(patterns)
        return f"{written[:60]!r} is not allowed: emulatedMachines of the KubeVirt object allows {allowed}"
    if machine_type(written) not in AVAILABLE:
        return f"{written[:60]!r} is not supported: use {', '.join(AVAILABLE)}"
    return None


def machine_warning(written: str) -> str | None:
    """Warning for a machine type that is replaced by another."""
    given = machine_type(written)
    return (
        None if given == written else f"{written[:60]} is not available: the VM uses {given}, the closest upstream type"
    )


def _patterns(config: "KubeVirtConfiguration | None") -> tuple[str, ...]:
    if config is None:
        return EMULATED
    amd64 = config.architectureConfiguration.amd64 if config.architectureConfiguration else None
    return tuple((amd64.emulatedMachines if amd64 else None) or config.emulatedMachines or EMULATED)

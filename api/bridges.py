"""Policy for the node bridges that VMs may use, read from annotations of the KubeVirt object. Pure.

The KubeVirt configuration has no field for it, and an additional field would be dropped by other tools.
"""

import fnmatch
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple, Protocol

from api import names
from api.errors import Fault
from api.k8s.meta import ObjectMeta

ANNOTATIONS = (names.ANNOTATION_BRIDGES_ALLOWED, names.ANNOTATION_BRIDGES_DENIED)
_PATTERN = re.compile(r"[A-Za-z0-9_.*?\-]{1,15}")


class _Object(Protocol):
    @property
    def metadata(self) -> ObjectMeta:
        """Metadata of the object."""


class BridgePolicy(NamedTuple):
    """Name patterns with wildcards `*` and `?`. `allowed` None permits every bridge."""

    allowed: tuple[str, ...] | None = None
    denied: tuple[str, ...] = ()

    def permits(self, bridge: str) -> bool:
        """Whether VMs may use the bridge."""
        if any(fnmatch.fnmatchcase(bridge, pattern) for pattern in self.denied):
            return False
        return self.allowed is None or any(fnmatch.fnmatchcase(bridge, pattern) for pattern in self.allowed)


NONE = BridgePolicy(allowed=())


def bridge_policy(annotations: Mapping[str, str] | None) -> BridgePolicy:
    """The policy in the annotations. Fails closed: an invalid list permits no bridge."""
    if list(faults(annotations)):
        return NONE
    allowed = (annotations or {}).get(names.ANNOTATION_BRIDGES_ALLOWED)
    denied = (annotations or {}).get(names.ANNOTATION_BRIDGES_DENIED)
    return BridgePolicy(_patterns(allowed) if allowed is not None else None, _patterns(denied or ""))


def bridge_policy_of(objects: Iterable[_Object]) -> BridgePolicy:
    """The policy of the KubeVirt object (the oldest of several); permits every bridge without one."""
    by_age = sorted(objects, key=lambda obj: (obj.metadata.creationTimestamp or "", obj.metadata.name or ""))
    return bridge_policy(by_age[0].metadata.annotations) if by_age else BridgePolicy()


def faults(annotations: Mapping[str, str] | None) -> Iterator[Fault]:
    """Faults of invalid patterns."""
    for key in ANNOTATIONS:
        for pattern in _patterns((annotations or {}).get(key) or ""):
            if not _PATTERN.fullmatch(pattern):
                yield Fault(
                    f"metadata.annotations.{key}",
                    names.FAULT_INVALID,
                    f"{pattern[:40]!r} is not a bridge name pattern: 1 to 15 letters, digits, '_', '.', '-' and the "
                    "wildcards '*' and '?'; separate patterns with commas",
                )


def _patterns(text: str) -> tuple[str, ...]:
    return tuple(each.strip() for each in text.split(",") if each.strip())

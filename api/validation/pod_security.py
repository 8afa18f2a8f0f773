"""What the Pod Security Standards refuse of a VM's launcher pod, told before there is a pod. Pure.

The launcher pod itself keeps to the standard `restricted` (tests/unit/security/test_pod_security.py); so only what a VM
hands on to its pod can break it. How a namespace's labels are read is as the API server reads them.
Source: k8s.io/pod-security-admission, api/helpers.go and policy/.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from api import names
from api.errors import Fault

LABEL_ENFORCE = "pod-security.kubernetes.io/enforce"
LABEL_VERSION = "pod-security.kubernetes.io/enforce-version"
LEVELS = ("privileged", "baseline", "restricted")
LATEST = (1 << 30, 0)

Version = tuple[int, int]
_VERSION = re.compile(r"v1\.(\d{1,5})")
_PROBE_HOST_SINCE = (1, 34)


class PodSecurityPolicy(NamedTuple):
    """What a namespace enforces: a level, as it was in a version of Kubernetes."""

    level: str
    version: Version = LATEST

    def covers(self, level: str, since: Version) -> bool:
        """Whether a check of that level, which exists since that version, is made of this namespace's pods."""
        return LEVELS.index(level) <= LEVELS.index(self.level) and since <= self.version


class Demand(NamedTuple):
    """A field of a VM that its pod may have only below `level`, from Kubernetes `since` on."""

    path: str
    level: str
    since: Version
    words: str
    """What the standard refuses and what to do, after "…enforces the Pod Security Standard X: "."""


def policy_of(labels: Mapping[str, str] | None) -> PodSecurityPolicy:
    """The policy that a namespace's labels say. As in the API server, what cannot be read is the strictest there is."""
    level = (labels or {}).get(LABEL_ENFORCE) or "privileged"
    version = _VERSION.fullmatch((labels or {}).get(LABEL_VERSION) or "")
    return PodSecurityPolicy(
        level if level in LEVELS else "restricted", (1, int(version.group(1))) if version else LATEST
    )


def demands(spec: Any, path: str = "spec") -> list[Demand]:
    """All such fields of a VMI's spec, as JSON that nobody has looked at yet. `path` is the spec's own."""
    return list(_probe_hosts(spec, path))


def faults(found: list[Demand], namespace: str, policy: PodSecurityPolicy) -> list[Fault]:
    """A Fault for every field that the namespace's policy refuses."""
    return [
        Fault(
            each.path,
            names.FAULT_FORBIDDEN,
            f"namespace {namespace} enforces the Pod Security Standard {policy.level!r}: {each.words}",
        )
        for each in found
        if policy.covers(each.level, each.since)
    ]


def _probe_hosts(spec: Any, path: str) -> Iterator[Demand]:
    """A probe of another host is a request that the node makes for the VM's owner."""
    for probe in ("livenessProbe", "readinessProbe"):
        for action in ("httpGet", "tcpSocket"):
            value = spec
            for key in (probe, action, "host"):
                value = value.get(key) if isinstance(value, dict) else None
            if value:
                words = "probes must not set a host: remove it, the probe then connects to the guest"
                yield Demand(f"{path}.{probe}.{action}.host", "baseline", _PROBE_HOST_SINCE, words)

"""Checks of a VM's spec against the Pod Security Standard that its namespace enforces on the launcher pod. Pure.

The launcher pod meets the standard `restricted` (tests/unit/security/test_pod_security.py), so only fields that are
copied from the VM to the pod can violate it. Namespace labels are interpreted as by the API server.
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
    """The policy that a namespace enforces: a level, at a Kubernetes version."""

    level: str
    version: Version = LATEST

    def covers(self, level: str, since: Version) -> bool:
        """Whether the policy includes a check of `level` that was added in version `since`."""
        return LEVELS.index(level) <= LEVELS.index(self.level) and since <= self.version


class Demand(NamedTuple):
    """A field of a VM that is allowed only below `level`, since Kubernetes version `since`."""

    path: str
    level: str
    since: Version
    words: str
    """Problem and remedy, appended to "…enforces the Pod Security Standard X: "."""


def policy_of(labels: Mapping[str, str] | None) -> PodSecurityPolicy:
    """The policy in a namespace's labels. As in the API server, invalid values mean the strictest policy."""
    level = (labels or {}).get(LABEL_ENFORCE) or "privileged"
    version = _VERSION.fullmatch((labels or {}).get(LABEL_VERSION) or "")
    return PodSecurityPolicy(
        level if level in LEVELS else "restricted", (1, int(version.group(1))) if version else LATEST
    )


def demands(spec: Any, path: str = "spec") -> list[Demand]:
    """Such fields in a VMI's spec, given as unvalidated JSON. `path` is the path of the spec."""
    return list(_probe_hosts(spec, path))


def faults(found: list[Demand], namespace: str, policy: PodSecurityPolicy) -> list[Fault]:
    """A Fault for every field that violates the namespace's policy."""
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
    """Probes with a host: they let a VM's owner send requests from the node."""
    for probe in ("livenessProbe", "readinessProbe"):
        for action in ("httpGet", "tcpSocket"):
            value = spec
            for key in (probe, action, "host"):
                value = value.get(key) if isinstance(value, dict) else None
            if value:
                words = "probes must not set a host: remove it, the probe then connects to the guest"
                yield Demand(f"{path}.{probe}.{action}.host", "baseline", _PROBE_HOST_SINCE, words)

"""Effective settings of the controller: from the KubeVirt CR, the environment and detected cluster capabilities."""

import os
from collections.abc import Iterable
from dataclasses import dataclass, field

from api import names
from api.k8s.objects import Node
from api.kubevirt.configuration import DeveloperConfiguration, KubeVirtConfiguration
from api.kubevirt.kubevirt import KubeVirtSpec
from api.kubevirt.kubevirt import configuration_of as configuration_of
from api.kubevirt.kubevirt import spec_of as spec_of

DEFAULT_CPU_ALLOCATION_RATIO = 10
DEFAULT_LAUNCHER_IMAGE = "hyperlet.local/launcher:dev"


@dataclass(frozen=True)
class ControllerSettings:
    """Everything but the VMI that determines its launcher pod."""

    launcher_image: str = DEFAULT_LAUNCHER_IMAGE
    launcher_pull_policy: str | None = None
    pull_secrets: tuple[str, ...] = ()
    """Names of Secrets in the VM's namespace for pulling the launcher image."""
    configuration: KubeVirtConfiguration = field(default_factory=KubeVirtConfiguration)
    kvm_offered: bool = False
    """At least one schedulable node has KVM."""
    image_volumes: bool = False
    """The API server supports image volumes."""
    user_namespaces: bool = False
    """Every schedulable node supports user namespaces (controller.launcher_pod.user_namespaces)."""

    @property
    def developer(self) -> DeveloperConfiguration:
        """The CR's developerConfiguration."""
        return self.configuration.developerConfiguration or DeveloperConfiguration()

    @property
    def emulated(self) -> bool:
        """Whether pods use software emulation: it is allowed, and no node offers KVM."""
        return bool(self.developer.useEmulation) and not self.kvm_offered

    @property
    def cpu_allocation_ratio(self) -> int:
        """vCPUs per requested CPU."""
        return self.developer.cpuAllocationRatio or DEFAULT_CPU_ALLOCATION_RATIO

    @property
    def memory_overcommit(self) -> int:
        """Guest memory as a percentage of its memory request."""
        return self.developer.memoryOvercommit or 100

    @property
    def overhead_ratio(self) -> float:
        """Factor for the computed memory overhead, at least 1; an invalid value counts as 1."""
        try:
            return max(1.0, float(self.configuration.additionalGuestMemoryOverheadRatio or 1))
        except ValueError:
            return 1.0


def launcher_image() -> str:
    """The launcher image, from HYPERLET_LAUNCHER_IMAGE."""
    return os.environ.get("HYPERLET_LAUNCHER_IMAGE") or DEFAULT_LAUNCHER_IMAGE


def launcher_pull_policy(spec: KubeVirtSpec) -> str | None:
    """The launcher's imagePullPolicy: HYPERLET_LAUNCHER_PULL_POLICY, else the KubeVirt CR's; None: the default."""
    configured = spec.configuration.imagePullPolicy if spec.configuration else None
    return os.environ.get("HYPERLET_LAUNCHER_PULL_POLICY") or configured or spec.imagePullPolicy


def pull_secrets(spec: KubeVirtSpec) -> tuple[str, ...]:
    """The names in the KubeVirt CR's imagePullSecrets, without duplicates."""
    return tuple(dict.fromkeys(secret.name for secret in spec.imagePullSecrets or () if secret.name))


def offers_kvm(nodes: Iterable[Node]) -> bool:
    """Whether a schedulable node has KVM, according to the labels set by its handler.

    Not `status.allocatable`: it lags behind after a kubelet restart, and does not show the cause.
    """
    return any(
        labels.get(names.LABEL_SCHEDULABLE) == "true" and labels.get(names.LABEL_KVM) == "true"
        for labels in (node.metadata.labels or {} for node in nodes)
    )

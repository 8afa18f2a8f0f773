"""The settings in force: the KubeVirt CR, the environment, and what the cluster turns out to be able to."""

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
    """Everything that decides how a VMI becomes a pod, apart from the VMI."""

    launcher_image: str = DEFAULT_LAUNCHER_IMAGE
    launcher_pull_policy: str | None = None
    pull_secrets: tuple[str, ...] = ()
    """Secrets of the VM's namespace with which the kubelet pulls the launcher's image."""
    configuration: KubeVirtConfiguration = field(default_factory=KubeVirtConfiguration)
    kvm_offered: bool = False
    """Some node that takes VMs has KVM."""
    image_volumes: bool = False
    """The API server keeps a pod's `volumes[].image`."""
    user_namespaces: bool = False
    """Every node that takes VMs can give a pod a user namespace (controller.launcher_pod.user_namespaces)."""

    @property
    def developer(self) -> DeveloperConfiguration:
        """The CR's developerConfiguration."""
        return self.configuration.developerConfiguration or DeveloperConfiguration()

    @property
    def emulated(self) -> bool:
        """Pods do not ask for KVM: nobody offers it, and software emulation is allowed."""
        return bool(self.developer.useEmulation) and not self.kvm_offered

    @property
    def cpu_allocation_ratio(self) -> int:
        """vCPUs to one requested CPU."""
        return self.developer.cpuAllocationRatio or DEFAULT_CPU_ALLOCATION_RATIO

    @property
    def memory_overcommit(self) -> int:
        """Guest memory in per cent of what is requested for it."""
        return self.developer.memoryOvercommit or 100

    @property
    def overhead_ratio(self) -> float:
        """Factor on the computed overhead; a value that is no number counts as 1."""
        try:
            return max(1.0, float(self.configuration.additionalGuestMemoryOverheadRatio or 1))
        except ValueError:
            return 1.0


def launcher_image() -> str:
    """The launcher's image, of HYPERLET_LAUNCHER_IMAGE."""
    return os.environ.get("HYPERLET_LAUNCHER_IMAGE") or DEFAULT_LAUNCHER_IMAGE


def launcher_pull_policy(spec: KubeVirtSpec) -> str | None:
    """When the launcher's image is pulled: HYPERLET_LAUNCHER_PULL_POLICY, else the KubeVirt CR's; None: by its tag."""
    configured = spec.configuration.imagePullPolicy if spec.configuration else None
    return os.environ.get("HYPERLET_LAUNCHER_PULL_POLICY") or configured or spec.imagePullPolicy


def pull_secrets(spec: KubeVirtSpec) -> tuple[str, ...]:
    """The KubeVirt CR's imagePullSecrets, each once."""
    return tuple(dict.fromkeys(secret.name for secret in spec.imagePullSecrets or () if secret.name))


def offers_kvm(nodes: Iterable[Node]) -> bool:
    """Whether a node that takes VMs has KVM, by its handler's word.

    Not by `status.allocatable`, which lags behind a kubelet's restart and does not tell why.
    """
    return any(
        labels.get(names.LABEL_SCHEDULABLE) == "true" and labels.get(names.LABEL_KVM) == "true"
        for labels in (node.metadata.labels or {} for node in nodes)
    )

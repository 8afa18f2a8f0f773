"""Shared dependencies of the gateway's parts."""

from collections.abc import Callable
from dataclasses import dataclass

from api.kubevirt.configuration import KubeVirtConfiguration
from gateway.pki.certificates import Certificates
from kit.kube import Kube


@dataclass(frozen=True, slots=True)
class Gateway:
    """One replica. `namespace` is that of the gateway and the handlers."""

    kube: Kube
    namespace: str
    certificates: Certificates
    configuration: Callable[[], KubeVirtConfiguration] = KubeVirtConfiguration
    """Returns the current configuration of the KubeVirt object."""

"""What every part of the gateway is given."""

from collections.abc import Callable
from dataclasses import dataclass

from api.kubevirt.configuration import KubeVirtConfiguration
from gateway.pki.certificates import Certificates
from kit.kube import Kube


@dataclass(frozen=True, slots=True)
class Gateway:
    """One replica. `namespace` is its own, which is the handlers' too."""

    kube: Kube
    namespace: str
    certificates: Certificates
    configuration: Callable[[], KubeVirtConfiguration] = KubeVirtConfiguration
    """The settings in force, of the KubeVirt object."""

"""CSI's Identity service, and the kubelet's Registration service, which registers the driver."""

from __future__ import annotations

from typing import Any

from google.protobuf.wrappers_pb2 import BoolValue

from api.version import VERSION
from cluster.csi import csi_pb2 as csi
from cluster.csi import csi_pb2_grpc as services
from cluster.csi import registration_pb2 as registration
from cluster.csi import registration_pb2_grpc as registration_services
from cluster.csi.kinds import StorageKind

CSI_VERSIONS = ("1.0.0", "1.13.0")
"""The driver's CSI version: everything compatible with the first version."""


class CsiIdentityService(services.IdentityServicer):
    """The driver's name and capabilities."""

    def __init__(self, kind: StorageKind) -> None:
        self._kind = kind

    def GetPluginInfo(self, request: csi.GetPluginInfoRequest, context: Any) -> csi.GetPluginInfoResponse:
        """Name and version."""
        return csi.GetPluginInfoResponse(name=self._kind.driver, vendor_version=VERSION)

    def GetPluginCapabilities(
        self, request: csi.GetPluginCapabilitiesRequest, context: Any
    ) -> csi.GetPluginCapabilitiesResponse:
        """A controller service, online expansion, and topology for volumes of one node."""
        capability, service = csi.PluginCapability, csi.PluginCapability.Service
        found = [
            capability(service=service(type=service.CONTROLLER_SERVICE)),
            capability(volume_expansion=capability.VolumeExpansion(type=capability.VolumeExpansion.ONLINE)),
        ]
        if not self._kind.shared:
            found.append(capability(service=service(type=service.VOLUME_ACCESSIBILITY_CONSTRAINTS)))
        return csi.GetPluginCapabilitiesResponse(capabilities=found)

    def Probe(self, request: csi.ProbeRequest, context: Any) -> csi.ProbeResponse:
        """Ready as soon as it answers."""
        return csi.ProbeResponse(ready=BoolValue(value=True))


class Registration(registration_services.RegistrationServicer):
    """Answers the kubelet."""

    def __init__(self, kind: StorageKind, endpoint: str) -> None:
        self._kind = kind
        self._endpoint = endpoint

    def GetInfo(self, request: registration.InfoRequest, context: Any) -> registration.PluginInfo:
        """The driver's name and socket."""
        return registration.PluginInfo(
            type="CSIPlugin", name=self._kind.driver, endpoint=self._endpoint, supported_versions=CSI_VERSIONS
        )

    def NotifyRegistrationStatus(
        self, request: registration.RegistrationStatus, context: Any
    ) -> registration.RegistrationStatusResponse:
        """Logs the kubelet's answer; the kubelet retries by itself."""
        words = "registered with the kubelet" if request.plugin_registered else f"kubelet: {request.error}"
        print(f"{self._kind.driver}: {words}", flush=True)
        return registration.RegistrationStatusResponse()

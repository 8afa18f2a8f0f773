"""Registry of Kubernetes resources: group, version, kind, plural and scope.

A kind is found by the class name of its Struct, so a component may declare a smaller Struct of the same name to save
memory. `register` adds a Struct whose name differs from its kind.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Resource:
    """A resource of the Kubernetes API. `group` is empty for the core group."""

    group: str
    version: str
    kind: str
    plural: str
    namespaced: bool = True

    @property
    def api_version(self) -> str:
        """The value of an object's `apiVersion`."""
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, namespace: str | None = None, name: str | None = None, subresource: str | None = None) -> str:
        """The URL path of a collection, an object or its subresource."""
        parts = ["apis", self.group, self.version] if self.group else ["api", self.version]
        if self.namespaced and namespace:
            parts += ["namespaces", namespace]
        parts.append(self.plural)
        if name is not None:
            parts.append(name)
        if subresource:
            parts.append(subresource)
        return "/" + "/".join(parts)


def _core(kind: str, plural: str, namespaced: bool = True) -> Resource:
    return Resource("", "v1", kind, plural, namespaced)


def _kubevirt(kind: str, plural: str) -> Resource:
    return Resource("kubevirt.io", "v1", kind, plural)


_KINDS: dict[str, Resource] = {
    resource.kind: resource
    for resource in (
        _core("Pod", "pods"),
        _core("Node", "nodes", namespaced=False),
        _core("Namespace", "namespaces", namespaced=False),
        _core("Event", "events"),
        _core("Secret", "secrets"),
        _core("ConfigMap", "configmaps"),
        _core("Service", "services"),
        _core("PersistentVolumeClaim", "persistentvolumeclaims"),
        _core("PersistentVolume", "persistentvolumes", namespaced=False),
        Resource("apps", "v1", "ControllerRevision", "controllerrevisions"),
        Resource("coordination.k8s.io", "v1", "Lease", "leases"),
        Resource("policy", "v1", "PodDisruptionBudget", "poddisruptionbudgets"),
        Resource("k8s.cni.cncf.io", "v1", "NetworkAttachmentDefinition", "network-attachment-definitions"),
        Resource("storage.k8s.io", "v1", "StorageClass", "storageclasses", namespaced=False),
        _kubevirt("KubeVirt", "kubevirts"),
        _kubevirt("VirtualMachine", "virtualmachines"),
        _kubevirt("VirtualMachineInstance", "virtualmachineinstances"),
        _kubevirt("VirtualMachineInstanceMigration", "virtualmachineinstancemigrations"),
    )
}


def register(struct: type, resource: Resource) -> None:
    """Registers the resource of a Struct whose name differs from its kind."""
    _KINDS[struct.__name__] = resource


def resource_of(struct: type) -> Resource:
    """The resource of a Struct. Raises KeyError if none is registered."""
    try:
        return _KINDS[struct.__name__]
    except KeyError:
        raise KeyError(f"{struct.__name__} is not a known kind: register it with kit.kinds.register") from None

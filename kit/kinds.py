"""Where each kind lives in the Kubernetes API: group, version, plural, namespaced or not.

Kinds are found by the class name of their Struct, so a role may declare a leaner Struct of the same name and keep less
in memory. `register` names the kind of a Struct that is called differently.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Resource:
    """A kind's place in the API. `group` is empty for the core group."""

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
    """Says which kind objects of `struct` are, when its name is not the kind's."""
    _KINDS[struct.__name__] = resource


def resource_of(struct: type) -> Resource:
    """The place of a Struct's kind in the API. Raises KeyError for a Struct that is no kind."""
    try:
        return _KINDS[struct.__name__]
    except KeyError:
        raise KeyError(f"{struct.__name__} is not a known kind: kit.kinds.register says where it lives") from None

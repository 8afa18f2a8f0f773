"""Resources of the Kubernetes API: group, version, kind, plural, scope.

A Struct of a kind declares its resource as `RESOURCE`. Several Structs may declare the same one: a component that reads
few fields declares a smaller Struct to save memory.
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


def resource_of(struct: type) -> Resource:
    """The resource that a Struct declares. Raises TypeError if it declares none."""
    resource = getattr(struct, "RESOURCE", None)
    if not isinstance(resource, Resource):
        raise TypeError(
            f"{struct.__module__}.{struct.__name__} declares no RESOURCE: it is not a kind of the API server"
        )
    return resource

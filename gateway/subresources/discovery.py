"""Discovery of groups, versions and resources. Unauthenticated, as in Kubernetes."""

from api import names
from api.k8s.meta import Json
from gateway.subresources.endpoints import ENDPOINTS, VERSIONS

GROUP = names.SUBRESOURCE_GROUP


def _version(version: str) -> Json:
    return {"groupVersion": f"{GROUP}/{version}", "version": version}


def group() -> Json:
    """APIGroup."""
    return {
        "kind": "APIGroup",
        "apiVersion": "v1",
        "name": GROUP,
        "versions": [_version(each) for each in VERSIONS],
        "preferredVersion": _version(VERSIONS[0]),
        "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": ""}],
    }


def groups() -> Json:
    """APIGroupList."""
    return {"kind": "APIGroupList", "apiVersion": "v1", "groups": [group()]}


def resources(version: str) -> Json:
    """APIResourceList: every name once. Kinds and verbs are empty, as in KubeVirt: none can be listed."""
    found = sorted({endpoint.name for endpoint in ENDPOINTS})
    entries = [{"name": name, "singularName": "", "namespaced": True, "kind": "", "verbs": None} for name in found]
    return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": f"{GROUP}/{version}", "resources": entries}


def root() -> Json:
    """RootPaths."""
    paths = ["/apis", f"/apis/{GROUP}", *(f"/apis/{GROUP}/{each}" for each in VERSIONS)]
    return {"paths": [*paths, "/healthz", "/openapi/v2", "/openapi/v3"]}

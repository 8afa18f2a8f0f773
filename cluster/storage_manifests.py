"""The manifests of the test cluster's storage: pure functions of the images' names."""

from __future__ import annotations

import hashlib
from pathlib import Path

from cluster.api import Json
from cluster.csi.kinds import KINDS, StorageKind

NAMESPACE = "storage"
ACCOUNT = "csi"
DRIVER = "csi-driver"
CONTROLLER = "csi-controller"
CODE_PATH = "/opt/csi"
KUBELET_PLUGINS = "/var/lib/kubelet/plugins"
KUBELET_REGISTRY = "/var/lib/kubelet/plugins_registry"
STORAGE_PATH = "/var/lib/storage"
SOURCE = Path(__file__).parent

EVERY_READ = ["get", "list", "watch"]
RULES: tuple[tuple[str, str, list[str]], ...] = (
    ("", "persistentvolumes", [*EVERY_READ, "create", "patch", "delete"]),
    ("", "persistentvolumeclaims", [*EVERY_READ, "update"]),
    ("", "persistentvolumeclaims/status", ["patch"]),
    ("", "events", ["list", "watch", "create", "update", "patch"]),
    ("", "nodes", EVERY_READ),
    ("", "pods", EVERY_READ),
    ("apps", "replicasets", ["get"]),
    ("storage.k8s.io", "storageclasses", EVERY_READ),
    ("storage.k8s.io", "csinodes", EVERY_READ),
    ("storage.k8s.io", "volumeattributesclasses", EVERY_READ),
    ("storage.k8s.io", "volumeattachments", [*EVERY_READ, "patch"]),
    ("storage.k8s.io", "volumeattachments/status", ["patch"]),
    ("storage.k8s.io", "csistoragecapacities", [*EVERY_READ, "create", "update", "patch", "delete"]),
    ("snapshot.storage.k8s.io", "volumesnapshotclasses", EVERY_READ),
    ("snapshot.storage.k8s.io", "volumesnapshots", [*EVERY_READ, "create", "update", "patch", "delete"]),
    ("snapshot.storage.k8s.io", "volumesnapshots/status", ["update", "patch"]),
    ("snapshot.storage.k8s.io", "volumesnapshotcontents", [*EVERY_READ, "create", "update", "patch", "delete"]),
    ("snapshot.storage.k8s.io", "volumesnapshotcontents/status", ["update", "patch"]),
)
"""The rights from the sidecars' and the snapshot controller's own manifests (deploy/kubernetes/rbac*.yaml)."""


def code() -> dict[str, str]:
    """The driver's files, by their path below CODE_PATH."""
    paths = [SOURCE / "__init__.py", *sorted((SOURCE / "csi").glob("*.py"))]
    return {str(path.relative_to(SOURCE.parent)): path.read_text() for path in paths}


def manifests(driver_image: str, sidecars_image: str) -> list[Json]:
    """All objects but the snapshots' CRDs, in the order in which they can be applied."""
    files = code()
    kinds = list(KINDS.values())
    return [
        {
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": {"name": NAMESPACE, "labels": {"pod-security.kubernetes.io/enforce": "privileged"}},
        },
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": _named(ACCOUNT)},
        _role(),
        _binding(),
        *(_csi_driver(kind) for kind in kinds),
        *(_storage_class(kind) for kind in kinds),
        *(_snapshot_class(kind) for kind in kinds),
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": _named(DRIVER),
            "data": {_key(p): files[p] for p in files},
        },
        _driver(driver_image, files),
        _controller(sidecars_image),
    ]


def _named(name: str) -> Json:
    return {"name": name, "namespace": NAMESPACE}


def _role() -> Json:
    rules = [{"apiGroups": [group], "resources": [resource], "verbs": verbs} for group, resource, verbs in RULES]
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRole",
        "metadata": {"name": "storage-csi"},
        "rules": rules,
    }


def _binding() -> Json:
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": "storage-csi"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "storage-csi"},
        "subjects": [{"kind": "ServiceAccount", "name": ACCOUNT, "namespace": NAMESPACE}],
    }


def _csi_driver(kind: StorageKind) -> Json:
    """The kubelet changes owners on a file system that only the pod uses; it does not change a file server's."""
    return {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "CSIDriver",
        "metadata": {"name": kind.driver},
        "spec": {
            "attachRequired": kind.shared,
            "podInfoOnMount": False,
            "storageCapacity": not kind.shared,
            "fsGroupPolicy": "None" if kind.shared else "File",
            "volumeLifecycleModes": ["Persistent"],
        },
    }


def _storage_class(kind: StorageKind) -> Json:
    return {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {"name": kind.name},
        "provisioner": kind.driver,
        "volumeBindingMode": "Immediate" if kind.shared else "WaitForFirstConsumer",
        "allowVolumeExpansion": True,
        "reclaimPolicy": "Delete",
    }


def _snapshot_class(kind: StorageKind) -> Json:
    return {
        "apiVersion": "snapshot.storage.k8s.io/v1",
        "kind": "VolumeSnapshotClass",
        "metadata": {"name": kind.name},
        "driver": kind.driver,
        "deletionPolicy": "Delete",
    }


def _key(path: str) -> str:
    """A ConfigMap's keys have no slashes."""
    return path.replace("/", "..")


def _driver(image: str, files: dict[str, str]) -> Json:
    """The driver on every node, for both kinds: one process, which also serves the sidecars."""
    digest = hashlib.sha256("\0".join(f"{path}\0{text}" for path, text in sorted(files.items())).encode()).hexdigest()
    command = [
        "/usr/bin/python3", "-s", "-m", "cluster.csi", *KINDS, "--node=$(NODE_NAME)", f"--storage={STORAGE_PATH}",
        f"--sockets={KUBELET_PLUGINS}", f"--registry={KUBELET_REGISTRY}", "--host-pid=1",
    ]  # fmt: skip
    container = {
        "name": "driver",
        "image": image,
        "command": command,
        "env": [
            {"name": "NODE_NAME", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
            {"name": "PYTHONPATH", "value": f"{CODE_PATH}:/opt/hyperlet:/opt/hyperlet/lib"},
        ],
        # For mounts, loop devices, and entering the node's mount namespace.
        "securityContext": {"privileged": True, "runAsUser": 0},
        "volumeMounts": [
            {"name": "code", "mountPath": CODE_PATH, "readOnly": True},
            {"name": "storage", "mountPath": STORAGE_PATH},
            {"name": "plugins", "mountPath": KUBELET_PLUGINS},
            {"name": "registry", "mountPath": KUBELET_REGISTRY},
        ],
    }
    items = [{"key": _key(path), "path": path} for path in files]
    pod = {
        "hostPID": True,
        "priorityClassName": "system-node-critical",
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": 5,
        "tolerations": [{"operator": "Exists"}],
        "containers": [container],
        "volumes": [
            {"name": "code", "configMap": {"name": DRIVER, "items": items}},
            _host_path("storage", STORAGE_PATH),
            _host_path("plugins", KUBELET_PLUGINS),
            _host_path("registry", KUBELET_REGISTRY),
        ],
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": _named(DRIVER),
        "spec": {
            "selector": {"matchLabels": {"app": DRIVER}},
            "updateStrategy": {"rollingUpdate": {"maxUnavailable": "100%"}},
            "template": {
                "metadata": {"labels": {"app": DRIVER}, "annotations": {"hyperlet/code": digest[:16]}},
                "spec": pod,
            },
        },
    }


def sidecars() -> list[Json]:
    """The sidecar containers: each watches the API for one kind of storage, and calls the driver."""
    found = [_sidecar("snapshot-controller", "snapshot-controller")]
    for kind in KINDS.values():
        socket = f"--csi-address={KUBELET_PLUGINS}/{kind.driver}/csi.sock"
        provision = [socket, "--extra-create-metadata"]
        if kind.shared:
            found.append(_sidecar(f"attacher-{kind.name}", "csi-attacher", socket))
        else:
            provision += ["--feature-gates=Topology=true", "--enable-capacity", "--capacity-ownerref-level=2"]
        found.append(_sidecar(f"provisioner-{kind.name}", "csi-provisioner", *provision))
        found.append(_sidecar(f"resizer-{kind.name}", "csi-resizer", socket, "--handle-volume-inuse-error=false"))
        found.append(_sidecar(f"snapshotter-{kind.name}", "csi-snapshotter", socket, "--extra-create-metadata"))
    return found


def _sidecar(name: str, program: str, *arguments: str) -> Json:
    fields = {"NAMESPACE": "metadata.namespace", "POD_NAME": "metadata.name"}
    return {
        "name": name,
        "command": [f"/{program}", *arguments],
        # They idle most of the time: save memory at the cost of CPU time.
        "env": [
            {"name": "GOGC", "value": "30"},
            {"name": "GOMAXPROCS", "value": "1"},
            *({"name": key, "valueFrom": {"fieldRef": {"fieldPath": path}}} for key, path in fields.items()),
        ],
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "volumeMounts": [{"name": "plugins", "mountPath": KUBELET_PLUGINS}],
    }


def _controller(image: str) -> Json:
    """One pod. If its node fails, another pod takes over: all calls of the driver are idempotent."""
    away = [
        {"key": f"node.kubernetes.io/{key}", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 5}
        for key in ("not-ready", "unreachable")
    ]
    pod = {
        "serviceAccountName": ACCOUNT,
        "priorityClassName": "system-cluster-critical",
        "terminationGracePeriodSeconds": 2,
        "tolerations": away,
        # The drivers' sockets belong to root.
        "securityContext": {"runAsUser": 0, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [{**each, "image": image} for each in sidecars()],
        "volumes": [_host_path("plugins", KUBELET_PLUGINS)],
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": _named(CONTROLLER),
        "spec": {
            "replicas": 1,
            "strategy": {"type": "Recreate"},
            "selector": {"matchLabels": {"app": CONTROLLER}},
            "template": {"metadata": {"labels": {"app": CONTROLLER}}, "spec": pod},
        },
    }


def _host_path(name: str, path: str) -> Json:
    return {"name": name, "hostPath": {"path": path, "type": "DirectoryOrCreate"}}

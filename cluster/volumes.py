"""Persistent volumes on a node's disk: a folder that survives a power cut, and a PersistentVolume for it."""

from __future__ import annotations

import re
from typing import Any

from cluster import node
from cluster.api import ClusterApi
from cluster.console import ClusterError

STORAGE_CLASS = "local"
FOLDER = "/var/lib/volumes"
"""The path of its volumes inside a node; on the machine it is `disk/volumes` in the node's folder."""

_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,61}[a-z0-9])?")


def manifest(name: str, node_name: str, size: str, storage_class: str = STORAGE_CLASS) -> dict[str, Any]:
    """A PersistentVolume for a folder of a node. `size` is a Kubernetes quantity ("1Gi")."""
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": name},
        "spec": {
            "capacity": {"storage": size},
            "accessModes": ["ReadWriteOnce"],
            "persistentVolumeReclaimPolicy": "Retain",
            "storageClassName": storage_class,
            "volumeMode": "Filesystem",
            "hostPath": {"path": f"{FOLDER}/{name}", "type": "Directory"},
            "nodeAffinity": {
                "required": {
                    "nodeSelectorTerms": [
                        {
                            "matchExpressions": [
                                {"key": "kubernetes.io/hostname", "operator": "In", "values": [node_name]}
                            ]
                        }
                    ]
                }
            },
        },
    }


def create(api: ClusterApi, name: str, node_name: str, size: str, storage_class: str = STORAGE_CLASS) -> bool:
    """Create the folder and the PersistentVolume; whether the latter is new.

    The folder is writable for all users, as a freshly formatted volume with fsGroup would be for its pod.
    Errors: ClusterError for an invalid name; ApiError when the server refuses the object.
    """
    if not _NAME.fullmatch(name):
        raise ClusterError(f"'{name}' is not a valid volume name", remedy="use lower case letters, digits, '-' and '.'")
    path = node.folder(node_name) / "disk" / "volumes" / name
    path.mkdir(parents=True, exist_ok=True)
    path.chmod(0o777)
    return api.ensure("/api/v1/persistentvolumes", manifest(name, node_name, size, storage_class))

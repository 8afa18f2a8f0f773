"""Whether the API server keeps image volumes in pods: asked once, by a pod that is created on trial only."""

import os
from typing import Any

import msgspec

from api.errors import HyperletError
from kit import kinds, log
from kit.kube import Kube

_log = log.logger(component="image-volumes")


class _Spec(msgspec.Struct, gc=False):
    volumes: list[dict[str, Any]] = []


class TrialPod(msgspec.Struct, gc=False):
    """A pod with the field in question."""

    spec: _Spec = msgspec.field(default_factory=_Spec)


kinds.register(TrialPod, kinds.Resource("", "v1", "Pod", "pods"))


async def supported(kube: Kube, namespace: str) -> bool:
    """Whether a pod's `volumes[].image` survives a dry-run create; `HYPERLET_IMAGE_VOLUMES=always|never` overrules.

    Where the server refuses the trial or does not know the field, the answer is no: the handler brings the images.
    """
    forced = os.environ.get("HYPERLET_IMAGE_VOLUMES", "auto")
    if forced in ("always", "never"):
        return forced == "always"
    pod = {
        "metadata": {"generateName": "hyperlet-trial-"},
        "spec": {
            "containers": [
                {
                    "name": "trial",
                    "image": "hyperlet.local/trial:1",
                    "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
                    "volumeMounts": [{"name": "trial", "mountPath": "/trial"}],
                }
            ],
            "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
            "volumes": [{"name": "trial", "image": {"reference": "hyperlet.local/trial:1"}}],
        },
    }
    try:
        kept = await kube.create(TrialPod, pod, namespace, dry_run=True)
    except HyperletError as error:
        _log.info("The API server refuses image volumes", why=error.message)
        return False
    return any("image" in volume for volume in kept.spec.volumes)

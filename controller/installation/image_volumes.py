"""Detects whether the API server supports image volumes, by a dry-run create of a pod."""

import asyncio
import os
from typing import Any

import msgspec

from api.errors import Forbidden, HyperletError, InvalidObject
from api.k8s.objects import Pod
from kit import log
from kit.kube import Kube

AGAIN_SECONDS = 2.0
"""Retry interval after an inconclusive response."""
UPDATE_SECONDS = 600.0
"""Interval at which an API server without image volumes is checked again."""

_log = log.logger(component="image-volumes")


class _Spec(msgspec.Struct, gc=False):
    volumes: list[dict[str, Any]] = []


class TrialPod(msgspec.Struct, gc=False):
    """A pod with its `spec.volumes`."""

    RESOURCE = Pod.RESOURCE

    spec: _Spec = msgspec.field(default_factory=_Spec)


_TRIAL = {
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


async def supported(kube: Kube, namespace: str) -> bool:
    """Whether a pod's `volumes[].image` survives a dry-run create. HYPERLET_IMAGE_VOLUMES (always, never) overrides it.

    A server without image volumes drops the field, or refuses the volume because it has no source. If a quota or policy
    refuses the pod, support is assumed: of the supported Kubernetes versions only the oldest has none. Retries while
    the API server is unavailable.
    """
    forced = os.environ.get("HYPERLET_IMAGE_VOLUMES", "auto")
    if forced in ("always", "never"):
        return forced == "always"
    while True:
        try:
            kept = await kube.create(TrialPod, _TRIAL, namespace, dry_run=True)
        except (InvalidObject, Forbidden) as error:
            if isinstance(error, InvalidObject) and any(
                fault.path.startswith("spec.volumes") for fault in error.faults
            ):
                _log.info("The API server does not support image volumes", why=error.message)
                return False
            _log.warning("Detection of image volumes was refused: assuming that they are supported", why=error.message)
            return True
        except HyperletError as error:
            _log.warning("Cannot detect support for image volumes: retrying", why=error.message)
            await asyncio.sleep(AGAIN_SECONDS)
        else:
            return any("image" in volume for volume in kept.spec.volumes)


async def appear(kube: Kube, namespace: str) -> None:
    """Returns when the API server supports image volumes: after it has been updated."""
    while not await supported(kube, namespace):  # noqa: ASYNC110 - it is another process that changes
        await asyncio.sleep(UPDATE_SECONDS)

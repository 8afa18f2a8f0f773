"""Whether the API server keeps image volumes in pods: asked once, by a pod that is created on trial only."""

import asyncio
import os
from typing import Any

import msgspec

from api.errors import Forbidden, HyperletError, InvalidObject
from kit import kinds, log
from kit.kube import Kube

AGAIN_SECONDS = 2.0
"""Until the next try, when the API server gave no answer to go by."""
UPDATE_SECONDS = 600.0
"""Between two looks whether a server without image volumes has them by now."""

_log = log.logger(component="image-volumes")


class _Spec(msgspec.Struct, gc=False):
    volumes: list[dict[str, Any]] = []


class TrialPod(msgspec.Struct, gc=False):
    """A pod with the field in question."""

    spec: _Spec = msgspec.field(default_factory=_Spec)


kinds.register(TrialPod, kinds.Resource("", "v1", "Pod", "pods"))


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
    """Whether a pod's `volumes[].image` survives a dry-run create; `HYPERLET_IMAGE_VOLUMES=always|never` overrules.

    A server where image volumes are switched off drops the volume, or refuses it as one without a source. Where a quota
    or a policy refuses the trial pod, they are taken to be there: of the supported versions only the oldest has none. A
    server that is away is asked again.
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
                _log.info("The API server has no image volumes", why=error.message)
                return False
            _log.warning("The API server refuses the trial of image volumes: taken to be there", why=error.message)
            return True
        except HyperletError as error:
            _log.warning("Cannot ask whether there are image volumes: asked again", why=error.message)
            await asyncio.sleep(AGAIN_SECONDS)
        else:
            return any("image" in volume for volume in kept.spec.volumes)


async def appear(kube: Kube, namespace: str) -> None:
    """Returns when a server that had none has image volumes: it was updated meanwhile."""
    while not await supported(kube, namespace):  # noqa: ASYNC110 - it is another process that changes
        await asyncio.sleep(UPDATE_SECONDS)

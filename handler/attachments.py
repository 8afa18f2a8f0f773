"""The interfaces of secondary networks in the pods of this node: made by Multus where it runs, else by us."""

import msgspec

from api import nad
from api.errors import NetworkError
from api.k8s import Pod
from kit import proc

MULTUS, OURS = "multus", "hyperlet"


class Attachments:
    """Joins pods to the networks of their annotation."""

    async def ensure(self, pod: Pod, process: proc.Process) -> dict[str, str]:
        """Who made each interface that the pod's annotation asks for, by its name in the pod: "multus" or "hyperlet".

        Idempotent; `process` is one in the pod's network namespace. Raises NetworkError while one of them is missing.
        """
        annotations = pod.metadata.annotations or {}
        try:
            wanted = nad.selections(pod.metadata.namespace or "", annotations.get(nad.ANNOTATION_NETWORKS))
            entries = msgspec.json.decode(annotations.get(nad.ANNOTATION_STATUS) or "[]", type=list[dict[str, object]])
        except (ValueError, msgspec.DecodeError) as error:
            raise NetworkError(str(error)) from error
        there = {str(entry.get("interface")) for entry in entries}
        missing = [each.network for each in wanted if each.interface not in there]
        if missing:
            raise NetworkError(f"nobody has joined the pod to {', '.join(missing)} yet")
        return {each.interface: MULTUS for each in wanted}

    async def forget(self, pod_uid: str) -> None:
        """Leaves the networks of a pod that is gone or has ended. Never raises: what fails is tried again later."""

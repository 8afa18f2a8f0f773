"""Converts a Sync request into the builder's request."""

import json
from typing import Any

from launcher.vm.errors import OperationRefused
from protos import launcher_pb2 as pb


def uid_of(request: pb.SyncRequest) -> str:
    """The UID of the VMI. Raises OperationRefused if missing."""
    try:
        uid = json.loads(request.vmi)["metadata"]["uid"]
    except (ValueError, LookupError, TypeError):
        uid = None
    if not isinstance(uid, str) or not uid:
        raise OperationRefused("INVALID_ARGUMENT", "metadata.uid: required; the VMI must be a JSON object")
    return uid


def question_of(request: pb.SyncRequest) -> dict[str, Any]:
    """The VMI and the handler's taps, as a request to `launcher.domain_builder.child`."""
    return {
        "vmi": request.vmi.decode(errors="replace"),
        "nics": [
            {"name": nic.name, "tap": nic.tap, "mac": nic.mac, "mtu": nic.mtu, "queues": nic.queues or 1}
            for nic in request.nics
        ],
    }

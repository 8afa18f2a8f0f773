"""Converts a Sync request into the builder's request."""

from typing import Any

from protos import launcher_pb2 as pb


def question_of(request: pb.SyncRequest) -> dict[str, Any]:
    """The VMI and the handler's taps, as a request to `launcher.domain_builder.child`."""
    return {
        "vmi": request.vmi.decode(errors="replace"),
        "nics": [
            {"name": nic.name, "tap": nic.tap, "mac": nic.mac, "mtu": nic.mtu, "queues": nic.queues or 1}
            for nic in request.nics
        ],
    }

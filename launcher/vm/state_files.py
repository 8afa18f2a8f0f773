"""State files of the server, for the supervisor and for the server's next run."""

import json
import os
import pathlib
from typing import Any

from google.protobuf.message import DecodeError

from launcher.paths import Paths
from protos import launcher_pb2 as pb


class StateFiles:
    """`state.json`, also read by the supervisor, and the last Sync request."""

    def __init__(self, paths: Paths) -> None:
        self._state = pathlib.Path(paths.state)
        self._request = pathlib.Path(paths.request)

    def load(self) -> dict[str, Any]:
        """The saved state; empty if none."""
        try:
            state = json.loads(self._state.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return state if isinstance(state, dict) else {}

    def save(self, state: dict[str, Any]) -> None:
        """Replace the saved state atomically."""
        _replace(self._state, json.dumps(state).encode())

    def load_request(self) -> pb.SyncRequest | None:
        """The last saved Sync request; None without a readable file."""
        try:
            return pb.SyncRequest.FromString(self._request.read_bytes())
        except (OSError, DecodeError):
            return None

    def save_request(self, request: pb.SyncRequest) -> None:
        """Save a request for the next server."""
        _replace(self._request, request.SerializeToString())


def _replace(path: pathlib.Path, data: bytes) -> None:
    temporary = path.with_suffix(f".{os.getpid()}")
    temporary.write_bytes(data)
    temporary.replace(path)

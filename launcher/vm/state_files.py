"""What the server leaves in files, for the supervisor and for the server after a restart."""

import json
import os
import pathlib
from typing import Any

from launcher.paths import Paths
from protos import launcher_pb2 as pb


class StateFiles:
    """`state.json`, which the supervisor reads too, and the last Sync request."""

    def __init__(self, paths: Paths) -> None:
        self._state = pathlib.Path(paths.state)
        self._request = pathlib.Path(paths.request)

    def load(self) -> dict[str, Any]:
        """What was saved last; empty if nothing was."""
        try:
            state = json.loads(self._state.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return state if isinstance(state, dict) else {}

    def save(self, state: dict[str, Any]) -> None:
        """Replaces what was saved, atomically: its readers never see half a file."""
        _replace(self._state, json.dumps(state).encode())

    def load_request(self) -> pb.SyncRequest | None:
        """The last request that was carried out."""
        try:
            return pb.SyncRequest.FromString(self._request.read_bytes())
        except Exception:  # protobuf's DecodeError has no public name; a damaged file is as good as none
            return None

    def save_request(self, request: pb.SyncRequest) -> None:
        """Remembers a request for the next server."""
        _replace(self._request, request.SerializeToString())


def _replace(path: pathlib.Path, data: bytes) -> None:
    temporary = path.with_suffix(f".{os.getpid()}")
    temporary.write_bytes(data)
    temporary.replace(path)

"""What pod interfaces had before it was taken from them for a guest: MAC, addresses, routes.

One file for each pod below `/run/hyperlet/nics`, which like the pods' network namespaces does not outlive the node's
start. It is written before anything is taken away, so a handler that starts again finds there what it can no longer
read from the interface.
"""

import contextlib
import os
import pathlib
import re
from collections.abc import Collection
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Interface

import msgspec

from api.errors import NetworkError

DIRECTORY = pathlib.Path("/run/hyperlet/nics")
_UID = re.compile(r"[0-9A-Za-z][0-9A-Za-z-]{0,62}")


class SavedRoute(msgspec.Struct, frozen=True):
    """An IPv4 route. `gateway`: None for what is on the link itself."""

    destination: IPv4Network
    gateway: IPv4Address | None = None


class SavedInterface(msgspec.Struct, frozen=True):
    """What one interface had. `index`: the interface's own, by which another one of its name is told from it."""

    index: int
    mac: str
    addresses4: tuple[IPv4Interface, ...] = ()
    addresses6: tuple[IPv6Interface, ...] = ()
    routes4: tuple[SavedRoute, ...] = ()


def _parsed(kind: type, text: object) -> object:
    """Addresses and networks, which msgspec leaves to us. Raises ValueError, which it turns into its own."""
    return kind(text)


class InterfaceRecord:
    """The file of one pod. Raises NetworkError if the directory cannot be used."""

    def __init__(self, pod_uid: str, directory: pathlib.Path = DIRECTORY) -> None:
        if not _UID.fullmatch(pod_uid):
            raise NetworkError(f"{pod_uid[:64]!r} is not a pod UID")
        self._directory = directory
        self._path = directory / f"{pod_uid}.json"

    def read(self) -> dict[str, SavedInterface]:
        """By interface; what cannot be read is as good as not there."""
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=dict[str, SavedInterface], dec_hook=_parsed)
        except (OSError, msgspec.DecodeError):
            return {}

    def write(self, taken: dict[str, SavedInterface]) -> None:
        """Replaces the file as a whole. Raises NetworkError."""
        fresh = self._path.with_suffix(".new")
        try:
            self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            with contextlib.suppress(FileNotFoundError):
                fresh.unlink()  # of a handler that was killed right here
            fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            with os.fdopen(fd, "wb") as file:
                file.write(msgspec.json.encode(taken, enc_hook=str))
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(self._path)
        except OSError as error:
            raise NetworkError(
                f"{self._path}: cannot save the state of the pod's interfaces: {error.strerror}"
            ) from error

    def remove(self) -> None:
        """Forgets the pod. Nothing happens if it is not known."""
        for path in (self._path, self._path.with_suffix(".new")):
            path.unlink(missing_ok=True)


def sweep(directory: pathlib.Path, living: Collection[str]) -> int:
    """Removes the files of pods that are not among the living; how many. Raises OSError."""
    gone = [path for path in directory.glob("*") if path.stem not in living]
    for path in gone:
        path.unlink(missing_ok=True)
    return len(gone)

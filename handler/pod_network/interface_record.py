"""Saved state of the pod interfaces that guests took over: MAC, addresses, routes.

One file per pod below `/run/hyperlet/nics`, which like network namespaces does not survive a reboot. It is written
before the interface is changed, so a restarted handler reads from it what the interface no longer shows.
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
    """An IPv4 route. `gateway`: None for a link route."""

    destination: IPv4Network
    gateway: IPv4Address | None = None


class SavedInterface(msgspec.Struct, frozen=True):
    """State of one interface. `index`: its interface index, which identifies it among interfaces of the same name."""

    index: int
    mac: str
    addresses4: tuple[IPv4Interface, ...] = ()
    addresses6: tuple[IPv6Interface, ...] = ()
    routes4: tuple[SavedRoute, ...] = ()


def _parsed(kind: type, text: object) -> object:
    """Addresses and networks, which msgspec does not decode. Raises ValueError."""
    return kind(text)


class InterfaceRecord:
    """The file of one pod. Raises NetworkError if the directory is unusable."""

    def __init__(self, pod_uid: str, directory: pathlib.Path = DIRECTORY) -> None:
        if not _UID.fullmatch(pod_uid):
            raise NetworkError(f"{pod_uid[:64]!r} is not a pod UID")
        self._directory = directory
        self._path = directory / f"{pod_uid}.json"

    def read(self) -> dict[str, SavedInterface]:
        """Saved state by interface name; empty if there is no readable file."""
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=dict[str, SavedInterface], dec_hook=_parsed)
        except (OSError, msgspec.DecodeError):
            return {}

    def write(self, taken: dict[str, SavedInterface]) -> None:
        """Replace the file atomically. Raises NetworkError."""
        fresh = self._path.with_suffix(".new")
        try:
            self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            with contextlib.suppress(FileNotFoundError):
                fresh.unlink()  # left by a handler that was killed while writing
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
        """Delete the file, if there is one."""
        for path in (self._path, self._path.with_suffix(".new")):
            path.unlink(missing_ok=True)


def sweep(directory: pathlib.Path, living: Collection[str]) -> int:
    """Delete the files of pods not in `living`; returns how many. Raises OSError."""
    gone = [path for path in directory.glob("*") if path.stem not in living]
    for path in gone:
        path.unlink(missing_ok=True)
    return len(gone)

"""Saved state of interfaces changed by cnv-tuning: one file per attachment in `dataDir`, on the host.

`<dataDir>/<containerid>_<ifname>.json`. The directory must be below one of DATA_ROOTS: a network's author must not make
root write to arbitrary places. Symbolic links are not followed.
"""

import contextlib
import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec
from msgspec import Struct

from cni import errors
from cni.errors import CniError
from kit import proc

DATA_ROOTS = ("/run/cni", "/var/lib/cni")
DATA_DIR = "/run/cni/tuning"
_LIMIT = 1 << 20


class Saved(Struct, omit_defaults=True):
    """State of an interface before the change; only changed settings are set."""

    network: str = ""
    mac: str | None = None
    mtu: int | None = None
    promisc: bool | None = None
    allmulti: bool | None = None
    txQLen: int | None = None
    sysctl: dict[str, str] = {}


class Folder:
    """A `dataDir` within a root directory. Raises CniError (7) if it is not below an allowed directory."""

    def __init__(self, root: int, path: str, allowed: tuple[str, ...]) -> None:
        parts = path.split("/")
        inside = any(path == each or path.startswith(each.rstrip("/") + "/") for each in allowed)
        if not path.startswith("/") or ".." in parts or not inside:
            raise CniError(errors.CONFIG, f"$.dataDir: {path[:80]!r} is not below {' or '.join(allowed)}")
        self._root = root
        self._path = "/".join(each for each in parts if each not in ("", "."))

    @contextmanager
    def _open(self, make: bool) -> Iterator[int]:
        """The directory's descriptor. Raises FileNotFoundError, CniError (5) for a symbolic link in the path."""
        try:
            with proc.closing(self._found(make)) as fd:
                yield fd
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENOTDIR, errno.EXDEV):
                raise CniError(errors.IO, f"dataDir /{self._path}: link or non-directory in the path") from None
            raise

    def _found(self, make: bool) -> int:
        try:
            return proc.open_beneath(self._root, self._path, os.O_PATH | os.O_DIRECTORY)
        except FileNotFoundError:
            if not make:
                raise
        parts = self._path.split("/")
        for count in range(1, len(parts) + 1):
            parent = "/".join(parts[: count - 1]) or "."
            above = proc.open_beneath(self._root, parent, os.O_PATH | os.O_DIRECTORY)
            with proc.closing(above), contextlib.suppress(FileExistsError):
                os.mkdir(parts[count - 1], 0o700, dir_fd=above)
        return proc.open_beneath(self._root, self._path, os.O_PATH | os.O_DIRECTORY)

    def save(self, container: str, interface: str, saved: Saved) -> None:
        """Write the file atomically. Raises CniError, OSError."""
        name = file_name(container, interface)
        with self._open(make=True) as folder:
            draft = f".{os.getpid()}-{id(saved):x}"  # short: the final name may have the maximum of 255 bytes
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            fd = os.open(draft, flags, 0o600, dir_fd=folder)
            try:
                with proc.closing(fd):
                    os.write(fd, msgspec.json.encode(saved))
                os.rename(draft, name, src_dir_fd=folder, dst_dir_fd=folder)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(draft, dir_fd=folder)
                raise

    def load(self, container: str, interface: str) -> Saved | None:
        """The saved state; None if there is none. Raises CniError (5) for an invalid file."""
        return self._load(file_name(container, interface))

    def _load(self, name: str) -> Saved | None:
        try:
            with self._open(make=False) as folder:
                return msgspec.json.decode(proc.read_beneath(folder, name, _LIMIT), type=Saved)
        except FileNotFoundError:
            return None
        except (msgspec.DecodeError, OSError) as error:
            raise CniError(errors.IO, f"the saved state {name} cannot be read: {error}") from None

    def forget(self, container: str, interface: str) -> None:
        """Remove the file, if it exists."""
        self._unlink(file_name(container, interface))

    def _unlink(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError), self._open(make=False) as folder:
            os.unlink(name, dir_fd=folder)

    def collect(self, network: str, valid: set[str]) -> None:
        """Remove the files of a network's attachments, except those named in `valid`."""
        try:
            with self._open(make=False) as folder:
                listing = proc.open_beneath(folder, ".", os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            return
        with proc.closing(listing):
            names = [each.name for each in os.scandir(listing)]
            names = [each for each in names if each.endswith(".json") and each not in valid]
        for name in names:
            with contextlib.suppress(CniError):
                saved = self._load(name)
                if saved is not None and saved.network == network:
                    self._unlink(name)


def file_name(container: str, interface: str) -> str:
    """The file of an attachment."""
    return f"{container}_{interface}.json"

"""Sysctls of a container's network namespace: only below /proc/sys/net, and only those that the administrator allows.

The allow-list is /etc/cni/tuning/allowlist.conf on the host: one regular expression per line, searched in the sysctl's
name with dots (`^net\\.ipv4\\.conf\\.IFNAME\\.[a-z_]*$`). Without the file, everything below net is allowed, as in the
reference tuning plugin. An unreadable file allows nothing.
"""

import os
import re
from dataclasses import dataclass
from typing import Self

from cni import errors
from cni.errors import CniError
from kit import proc

ALLOW_LIST = "etc/cni/tuning/allowlist.conf"
_LIMIT = 1 << 20
_VALUE_LIMIT = 4096
_PLACE = "/proc/sys/net"
_COUNT_LIMIT = 256


@dataclass(frozen=True)
class Sysctl:
    """A sysctl to set. `path` is below /proc/sys/net."""

    name: str
    path: str
    value: str


def parse(given: dict[str, str], interface: str) -> list[Sysctl]:
    """The sysctls of a configuration, with `IFNAME` replaced. Raises CniError (7).

    Names have dots or slashes as separators, whichever comes first, as in sysctl(8).
    """
    if len(given) > _COUNT_LIMIT:
        raise CniError(errors.CONFIG, f"$.sysctl: more than {_COUNT_LIMIT} entries")
    found = []
    for key, value in given.items():
        parts = _parts(key)
        if parts[0] != "net" or len(parts) < 2:
            raise CniError(errors.CONFIG, f"$.sysctl: {key[:80]!r} is not below net; only net.* can be changed")
        if any(part in ("", ".", "..") or "\0" in part or "/" in part for part in parts):
            raise CniError(errors.CONFIG, f"$.sysctl: {key[:80]!r} is not the name of a sysctl")
        if len(value) > _VALUE_LIMIT or "\0" in value:
            raise CniError(errors.CONFIG, f"$.sysctl[{key[:80]!r}]: the value is too long or not text")
        path = "/".join(interface if part == "IFNAME" else part for part in parts[1:])
        found.append(Sysctl(".".join(part.replace(".", "/") for part in parts), path, value))
    return found


def _parts(key: str) -> list[str]:
    dot, slash = key.find("."), key.find("/")
    if slash >= 0 and (dot < 0 or slash < dot):
        return key.split("/")
    return [part.replace("/", ".") for part in key.split(".")]


def permit(wanted: list[Sysctl], root: int) -> None:
    """Check the allow-list of the host with root directory `root`. Raises CniError (103, 5)."""
    if not wanted:
        return
    try:
        text = proc.read_beneath(root, ALLOW_LIST, _LIMIT).decode()
    except FileNotFoundError:
        return
    except (OSError, UnicodeDecodeError) as error:
        raise CniError(errors.IO, f"/{ALLOW_LIST} cannot be read, so no sysctl is allowed: {error}") from None
    try:
        allowed = [re.compile(line.strip()) for line in text.splitlines() if line.strip()]
    except re.error as error:
        raise CniError(errors.IO, f"/{ALLOW_LIST} has a line that is not a regular expression: {error}") from None
    for each in wanted:
        if not any(pattern.search(each.name) for pattern in allowed):
            raise CniError(errors.FORBIDDEN, f"the sysctl {each.name} is not in this node's /{ALLOW_LIST}")


class Place:
    """/proc/sys/net of the opening thread's network namespace."""

    def __init__(self) -> None:
        self._fd = os.open(_PLACE, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

    def read(self, path: str) -> str:
        """The value of a sysctl. Raises OSError."""
        with proc.closing(proc.open_beneath(self._fd, path, os.O_RDONLY | os.O_NOCTTY)) as fd:
            return os.read(fd, 1 << 16).decode("utf-8", "replace").rstrip("\n")

    def write(self, path: str, value: str) -> None:
        """Set a sysctl. Raises OSError."""
        with proc.closing(proc.open_beneath(self._fd, path, os.O_WRONLY | os.O_NOCTTY)) as fd:
            os.write(fd, value.encode())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

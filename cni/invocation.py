"""Authenticates the caller, and validates the environment of a call.

Only root on the host may call the daemon. The kernel identifies the peer of the socket (SO_PEERCRED): it must be user 0
in the host's user namespace, and in the daemon's PID and network namespaces (the handler's pod shares the host's PID
namespace, and the daemon enters the host's network namespace at start); root in a container is refused. File names are
resolved in the caller's root, the host's, so the pod mounts none of the host's directories but the socket's.
"""

import fcntl
import os
import re
import socket
import struct
from dataclasses import dataclass
from pathlib import Path

from cni import errors
from cni.errors import CniError
from cni.wire import WireRequest

_CONTAINER = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.\-]*")
_NS_GET_NSTYPE = 0xB703
_CLONE_NEWNET = 0x40000000
_CREDENTIALS = struct.Struct("=iII")
CONTAINER_LIMIT = 200  # `<containerid>_<ifname>.json` must be a file name


class Untrusted(Exception):
    """The peer of the socket is not root on the host."""


@dataclass(frozen=True)
class OwnNamespaces:
    """The daemon's own namespaces, as (device, inode)."""

    pid: tuple[int, int]
    user: tuple[int, int]
    mount: tuple[int, int]
    net: tuple[int, int]

    @classmethod
    def now(cls) -> "OwnNamespaces":
        """The namespaces of the calling thread."""
        return cls(*(identity(f"/proc/thread-self/ns/{kind}") for kind in ("pid", "user", "mnt", "net")))


def identity(path: str | int) -> tuple[int, int]:
    """(device, inode) of a namespace. Raises OSError."""
    found = os.fstat(path) if isinstance(path, int) else Path(path).stat()
    return found.st_dev, found.st_ino


def trusted_peer(connection: socket.socket, own: OwnNamespaces) -> int:
    """The caller's PID if it is root on the host. Raises Untrusted."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid: int
    pid, uid, _ = _CREDENTIALS.unpack(raw)
    if uid != 0 or pid <= 0:
        raise Untrusted(f"uid {uid}, pid {pid}")
    try:
        namespaces = identity(f"/proc/{pid}/ns/pid"), identity(f"/proc/{pid}/ns/user"), identity(f"/proc/{pid}/ns/net")
    except OSError as error:
        raise Untrusted(f"pid {pid} is gone: {error}") from None
    if namespaces[:2] != (own.pid, own.user):
        raise Untrusted(f"pid {pid} is root of a container")
    if namespaces[2] != own.net:
        raise Untrusted(f"pid {pid} is in another network namespace than the host's")
    return pid


@dataclass(frozen=True)
class Invocation:
    """A validated call. `netns`: descriptor of a network namespace, or -1; `netns_path`: its path as given."""

    plugin: str
    command: str
    container: str
    interface: str
    netns: int
    netns_path: str
    path: tuple[str, ...]
    arguments: dict[str, str]
    environment: dict[str, str]
    stdin: bytes
    peer: int

    @property
    def attachment(self) -> tuple[str, str]:
        """Identifies the attachment within a network, according to the specification."""
        return self.container, self.interface


def check(request: WireRequest, peer: int, own: OwnNamespaces) -> Invocation:
    """The validated call of a request. Raises CniError with the specification's code."""
    environment = request.environment
    command = environment.get("CNI_COMMAND", "")
    container = environment.get("CNI_CONTAINERID", "")
    interface = environment.get("CNI_IFNAME", "")
    needed = {
        "ADD": ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"),
        "CHECK": ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"),
        "DEL": ("CNI_CONTAINERID", "CNI_IFNAME", "CNI_PATH"),
        "GC": ("CNI_PATH",),
        "STATUS": (),
    }
    if command not in needed:
        raise CniError(
            errors.ENVIRONMENT, f"CNI_COMMAND is {_shown(command)}: not ADD, CHECK, DEL, GC, STATUS or VERSION"
        )
    missing = [name for name in needed[command] if not environment.get(name)]
    if missing:
        raise CniError(errors.ENVIRONMENT, f"{command} requires {', '.join(missing)} in the environment")
    if command in ("ADD", "CHECK", "DEL"):
        _check_names(container, interface)
    if command in ("ADD", "CHECK"):
        _check_netns(request.netns, environment["CNI_NETNS"], own)
    return Invocation(
        plugin=request.plugin,
        command=command,
        container=container,
        interface=interface,
        netns=request.netns if command != "DEL" or is_netns(request.netns, own) else -1,
        netns_path=environment.get("CNI_NETNS", ""),
        path=tuple(each for each in environment.get("CNI_PATH", "").split(":") if each.startswith("/")),
        arguments=_arguments(environment.get("CNI_ARGS", "")),
        environment=environment,
        stdin=request.stdin,
        peer=peer,
    )


def interface_fault(name: str) -> str:
    """What is wrong with a network device name; empty if valid. Source: the kernel's dev_valid_name."""
    if not name or len(name.encode("utf-8", "surrogateescape")) > 15:
        return "must have 1 to 15 bytes"
    if name in (".", "..") or any(c in "/:" or c.isspace() or not c.isprintable() for c in name):
        return "must not hold '/', ':' or white space, nor be '.' or '..'"
    return ""


def _check_names(container: str, interface: str) -> None:
    if not _CONTAINER.fullmatch(container) or len(container) > CONTAINER_LIMIT:
        raise CniError(
            errors.ENVIRONMENT,
            f"CNI_CONTAINERID is {_shown(container)}: must be at most {CONTAINER_LIMIT} letters, digits, '_', '.' "
            "or '-', the first a letter or digit",
        )
    if fault := interface_fault(interface):
        raise CniError(errors.ENVIRONMENT, f"CNI_IFNAME is {_shown(interface)}: it {fault}")


def is_netns(fd: int, own: OwnNamespaces) -> bool:
    """Whether a descriptor is a network namespace other than the host's."""
    try:
        return fd >= 0 and bool(fcntl.ioctl(fd, _NS_GET_NSTYPE) == _CLONE_NEWNET) and identity(fd) != own.net
    except OSError:
        return False


def _check_netns(fd: int, path: str, own: OwnNamespaces) -> None:
    if fd < 0:
        raise CniError(errors.NETNS, f"CNI_NETNS is {_shown(path)}: it cannot be opened")
    if not is_netns(fd, own):
        raise CniError(errors.NETNS, f"CNI_NETNS is {_shown(path)}: not a network namespace, or the host's own")


def _arguments(raw: str) -> dict[str, str]:
    found = {}
    for pair in filter(None, raw.split(";")):
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise CniError(errors.ENVIRONMENT, f"CNI_ARGS is {_shown(raw)}: must be KEY=VALUE;KEY=VALUE...")
        found[key] = value
    return found


def _shown(value: str) -> str:
    return repr(value if len(value) <= 80 else value[:77] + "...")


def root_of(peer: int) -> int:
    """A descriptor of the caller's root directory. Raises OSError."""
    return os.open(f"/proc/{peer}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

"""Processes, namespaces and descriptors: Linux system calls that Python 3.11 does not wrap.

All functions work on descriptors, not on names, which another party can change in between. Sources: openat2(2),
setns(2), unshare(2), proc(5), cgroups(7).
"""

import array
import asyncio
import ctypes
import errno
import fcntl
import os
import pathlib
import re
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self, TypeVar

T = TypeVar("T")

CLONE_FS = 0x00000200
CLONE_NEWNS = 0x00020000
CLONE_NEWNET = 0x40000000

RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08
# For paths in directories that others can write to: no links of any kind, and no escape from the directory.
RESOLVE_SAFELY = RESOLVE_NO_MAGICLINKS | RESOLVE_NO_SYMLINKS | RESOLVE_BENEATH

# ioctl requests of linux/nsfs.h.
_NS_GET_USERNS, _NS_GET_PARENT, _NS_GET_OWNER_UID = 0xB701, 0xB702, 0xB704

# Numbers from 424 on are the same on every architecture (include/uapi/asm-generic/unistd.h).
_SYS_OPENAT2 = 437

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


class _OpenHow(ctypes.Structure):
    """struct open_how of linux/openat2.h."""

    _fields_ = [("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64)]


def syscall(number: int, *arguments: object) -> int:
    """A raw system call. Arguments are ints, bytes, None or ctypes pointers. Raises OSError."""
    result: int = _libc.syscall(ctypes.c_long(number), *(_as_argument(argument) for argument in arguments))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def _as_argument(value: object) -> object:
    # ctypes passes a plain int as 32 bits and leaves the upper half of the register undefined.
    return ctypes.c_long(value) if isinstance(value, int) else value


def open_beneath(directory: int, path: str, flags: int, mode: int = 0) -> int:
    """Opens `path` below the directory descriptor without following any link on the way or at the end (openat2).

    Raises OSError: ELOOP for a link, EXDEV for an escape from the directory, others as open(2).
    """
    how = _OpenHow(flags | os.O_CLOEXEC, mode, RESOLVE_SAFELY)
    return syscall(_SYS_OPENAT2, directory, os.fsencode(path), ctypes.byref(how), ctypes.sizeof(how))


def open_regular(directory: int, path: str, flags: int) -> int:
    """Opens a regular file as `open_beneath` does. Raises OSError (EINVAL) for anything else, without opening it.

    Opening a device has side effects: a watchdog starts, a tape rewinds. So the inode is checked through an O_PATH
    descriptor, which is then reopened.
    """
    with closing(open_beneath(directory, path, os.O_PATH)) as named:
        if not stat.S_ISREG(os.fstat(named).st_mode):
            raise OSError(errno.EINVAL, f"{path} is not a regular file")
        return os.open(f"/proc/self/fd/{named}", flags | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)


def write_fifo(directory: int, path: str, data: bytes) -> bool:
    """Writes to a FIFO below the directory descriptor. False if it does not exist, has no reader or is full.

    Raises OSError if the file is not a FIFO, without opening it.
    """
    try:
        with closing(open_beneath(directory, path, os.O_PATH)) as named:
            if not stat.S_ISFIFO(os.fstat(named).st_mode):
                raise OSError(errno.EINVAL, f"{path} is not a FIFO")
            # The descriptor refers to a FIFO, never a link, so the magic link resolves to exactly that inode.
            with closing(os.open(f"/proc/self/fd/{named}", os.O_WRONLY | os.O_CLOEXEC | os.O_NONBLOCK)) as fd:
                return os.write(fd, data) == len(data)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENXIO, errno.EAGAIN, errno.EPIPE):
            return False
        raise


def read_beneath(directory: int, path: str, limit: int) -> bytes:
    """The first `limit` bytes of a regular file, opened as `open_regular` does. Raises OSError."""
    with closing(open_regular(directory, path, os.O_RDONLY)) as fd:
        return _read(fd, limit)


def _read(fd: int, limit: int) -> bytes:
    chunks = []
    while limit > 0 and (chunk := os.read(fd, limit)):
        chunks.append(chunk)
        limit -= len(chunk)
    return b"".join(chunks)


@contextmanager
def closing(fd: int) -> Iterator[int]:
    """Context manager that closes the descriptor."""
    try:
        yield fd
    finally:
        os.close(fd)


class Process:
    """A reference to a process by a descriptor of its /proc directory.

    The descriptor is not affected by pid reuse: after the process has ended every use raises OSError (ESRCH or ENOENT).
    """

    def __init__(self, pid: int) -> None:
        """Raises OSError if the process does not exist."""
        self.pid = pid
        self._fd = os.open(f"/proc/{pid}", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

    def read(self, name: str, limit: int = 1 << 16) -> bytes:
        """The first `limit` bytes of a file of the process's /proc directory."""
        with closing(os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._fd)) as fd:
            return _read(fd, limit)

    def namespace(self, kind: str) -> int:
        """A new descriptor of the process's namespace; `kind` as in /proc/self/ns: net, mnt, user, ..."""
        return os.open(f"ns/{kind}", os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._fd)

    def shares_namespace(self, kind: str) -> bool:
        """Whether the process is in the same namespace as the caller."""
        with closing(self.namespace(kind)) as theirs:
            return os.path.samestat(os.fstat(theirs), pathlib.Path(f"/proc/self/ns/{kind}").stat())

    def root(self) -> int:
        """A new descriptor of the process's root directory. Resolve names below it with `open_beneath` only."""
        return os.open("root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._fd)

    def host_user(self, user: int) -> int:
        """The host UID of a UID in the process's user namespace. Raises OSError (EINVAL) if it is not mapped."""
        return self._mapped("uid_map", user)

    def host_group(self, group: int) -> int:
        """The host GID of a GID in the process's user namespace. Raises OSError (EINVAL) if it is not mapped."""
        return self._mapped("gid_map", group)

    def _mapped(self, table: str, identity: int) -> int:
        # user_namespaces(7): first inside ID, first outside ID (in the reader's namespace), length.
        for line in self.read(table).splitlines():
            first, theirs, count = map(int, line.split())
            if first <= identity < first + count:
                return theirs + identity - first
        raise OSError(errno.EINVAL, f"{identity} is not in the {table} of process {self.pid}")

    @property
    def users(self) -> set[int]:
        """The process's UIDs: real, effective, saved and file system. Raises OSError."""
        for line in self.read("status").splitlines():
            if line.startswith(b"Uid:"):
                return {int(word) for word in line.split()[1:]}
        raise OSError(errno.ESRCH, "no Uid line in the process's status")

    @property
    def alive(self) -> bool:
        """Whether the process exists and is not a zombie."""
        try:
            state = self.read("stat").rpartition(b")")[2].split()
        except OSError:
            return False
        return bool(state) and state[0] not in (b"Z", b"X")

    def close(self) -> None:
        """Closes the descriptor. Further uses raise OSError."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def same_namespace(one: Process, other: Process, kind: str) -> bool:
    """Whether two processes share their namespace of type `kind`."""
    with closing(one.namespace(kind)) as first, closing(other.namespace(kind)) as second:
        return os.path.samestat(os.fstat(first), os.fstat(second))


def belongs_to_users_of(namespace: int, process: Process) -> bool:
    """Whether a namespace (descriptor) is owned by the process's user namespace. Raises OSError."""
    with closing(fcntl.ioctl(namespace, _NS_GET_USERNS)) as owner, closing(process.namespace("user")) as theirs:
        return os.path.samestat(os.fstat(owner), os.fstat(theirs))


def owned_by_host_root(process: Process) -> bool:
    """Whether the process's user namespace is a child of the caller's and was created by the caller's root.

    That holds for namespaces created by a container runtime. A namespace created inside of a pod is a child of the
    pod's, or is owned by the pod's user.
    """
    with closing(process.namespace("user")) as namespace:
        try:
            parent = fcntl.ioctl(namespace, _NS_GET_PARENT)
        except OSError as error:
            if error.errno == errno.EPERM:  # no visible parent: it is the caller's own namespace, or an ancestor
                return False
            raise
        with closing(parent):
            if not os.path.samestat(os.fstat(parent), pathlib.Path("/proc/self/ns/user").stat()):
                return False
        owner = array.array("I", [0xFFFFFFFF])
        fcntl.ioctl(namespace, _NS_GET_OWNER_UID, owner)
        return owner[0] == 0


_POD_COMPONENT = re.compile(r"(?:kubepods(?:-[a-z]+)?-)?pod([0-9a-fA-F]{8}[-_0-9a-fA-F]*)(?:\.slice)?(?::.*)?")


def pod_of_cgroups(text: str) -> str | None:
    """The UID of the pod that a process belongs to, from the content of its /proc/<pid>/cgroup; None if in no pod.

    Supports cgroup v1 and v2, the kubelet's cgroupfs names (`pod<uid>`) and systemd names
    (`kubepods-burstable-pod<uid>.slice` with underscores), and paths seen from inside a cgroup namespace
    (`/../pod<uid>/...`). The outermost match counts, so that a pod cannot imitate another one with cgroups below its
    own. Returns None if hierarchies name different pods.
    """
    found: set[str] = set()
    for line in text.splitlines():
        path = line.split(":", 2)[2] if line.count(":") >= 2 else ""
        matches = (_POD_COMPONENT.fullmatch(part) for part in path.split("/"))
        first = next((match for match in matches if match), None)
        if first:
            found.add(first.group(1).replace("_", "-").lower())
    return found.pop() if len(found) == 1 else None


def setns(fd: int, kind: int) -> None:
    """Moves the calling thread into a namespace. Raises OSError. Call it only inside `isolated`."""
    if _libc.setns(fd, kind) < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def unshare(flags: int) -> None:
    """Moves the calling thread into new namespaces. Raises OSError. Call it only inside `isolated`."""
    if _libc.unshare(flags) < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def enter_mounts(namespace: int) -> None:
    """Moves the calling thread, with its root and working directory, into a mount namespace. Raises OSError."""
    unshare(CLONE_FS)  # setns(2) fails for a thread that shares its root directory with others
    setns(namespace, CLONE_NEWNS)


async def isolated(work: Callable[[], T]) -> T:
    """Runs `work` in a new thread and returns its result.

    The thread may change its namespaces, file system IDs and working directory, as it is not reused. Cancelling the
    caller does not stop the thread.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]

    def body() -> None:
        result, error = None, None
        try:
            result = work()
        except BaseException as caught:
            error = caught
        if not loop.is_closed():
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=body, name="isolated", daemon=True).start()
    return await future


def isolated_now(work: Callable[[], T]) -> T:
    """Blocking version of `isolated`, for callers without an event loop."""
    outcome: list[T] = []
    errors: list[BaseException] = []

    def body() -> None:
        try:
            outcome.append(work())
        except BaseException as caught:
            errors.append(caught)

    thread = threading.Thread(target=body, name="isolated", daemon=True)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return outcome[0]

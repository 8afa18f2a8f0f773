"""The libvirt daemon of this pod: its directories, configuration and command.

Session mode as an unprivileged user: no cgroups, no namespaces, no security driver; the pod provides the isolation.
Standard library only, with few imports: the supervisor imports this module.
"""

import os
from collections.abc import Callable

from launcher.log import log
from launcher.paths import Paths

DAEMONS = ("libvirtd", "virtqemud")
BAKED = "/opt/hyperlet/libvirt-cache"
"""The image's copy of $XDG_CACHE_HOME/libvirt: avoids probing QEMU at every start."""

_LARGEST_CACHE = 16 << 20
_DRIVER = "libvirt_driver_qemu.so"
_DRIVERS = "/usr/lib/{}/libvirt/connection-driver"
_QEMU_CONF = """\
stdio_handler = "file"
cgroup_controllers = []
namespaces = []
security_driver = "none"
dynamic_ownership = 1
remember_owner = 0
max_core = 0
vnc_allow_host_audio = 0
"""
_DAEMON_CONF = """\
host_uuid = "{uuid}"
auth_unix_ro = "none"
auth_unix_rw = "none"
unix_sock_rw_perms = "0600"
unix_sock_ro_perms = "0600"
unix_sock_admin_perms = "0600"
min_workers = 1
max_workers = 4
prio_workers = 1
max_clients = 8
max_anonymous_clients = 8
max_client_requests = 8
admin_min_workers = 1
admin_max_workers = 1
log_outputs = "4:stderr"
"""


def find(directories: tuple[str, ...] = ("/usr/sbin", "/usr/bin")) -> str:
    """The path of the installed daemon, libvirtd before virtqemud. Raises FileNotFoundError."""
    for name in DAEMONS:
        for directory in directories:
            if os.access(f"{directory}/{name}", os.X_OK):
                return f"{directory}/{name}"
    raise FileNotFoundError("neither libvirtd nor virtqemud is installed")


def environment(paths: Paths) -> dict[str, str]:
    """The daemon's environment: it writes only below the pod's emptyDir."""
    return {
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": paths.home,
        "XDG_RUNTIME_DIR": f"{paths.home}/run",
        "XDG_CONFIG_HOME": f"{paths.home}/config",
        "XDG_CACHE_HOME": f"{paths.home}/cache",
        "XDG_DATA_HOME": f"{paths.home}/data",
        "LIBVIRT_DRIVER_DIR": paths.libvirt_drivers,
        "LC_ALL": "C.UTF-8",
        "MALLOC_ARENA_MAX": "1",
    }


def command(daemon: str, paths: Paths) -> list[str]:
    """The daemon's command line."""
    return [daemon, "-f", f"{paths.libvirt_config}/{os.path.basename(daemon)}.conf"]  # noqa: PTH119


def prepare(daemon: str, paths: Paths) -> None:
    """Create the daemon's directories and files, replacing existing files."""
    for directory in (paths.libvirt_config, paths.libvirt_runtime, paths.libvirt_cache, f"{paths.home}/data"):
        os.makedirs(directory, mode=0o700, exist_ok=True)  # noqa: PTH103
    name = os.path.basename(daemon)  # noqa: PTH119
    _write(f"{paths.libvirt_config}/qemu.conf", _QEMU_CONF)
    _write(f"{paths.libvirt_config}/{name}.conf", _DAEMON_CONF.format(uuid=_uuid()))
    _link_drivers(paths)
    source, changes = os.environ.get("HYPERLET_LIBVIRT_CACHE", BAKED), _changes(daemon)
    _run_in_child(lambda: install_cache(source, paths.libvirt_cache, changes))


def _run_in_child(work: Callable[[], None]) -> None:
    """Run `work` in a forked process: what it imports would cost this process memory for the VM's lifetime."""
    child = os.fork()
    if not child:
        status = 1
        try:
            work()
            status = 0
        except Exception as error:
            log("warning", "libvirt's cache cannot be installed: QEMU is queried", error=repr(error))
        finally:
            os._exit(status)
    os.waitpid(child, 0)


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="ascii") as file:  # noqa: PTH123
        file.write(text)


def _uuid() -> str:
    """A random UUID: libvirt refuses to migrate between daemons of the same UUID, and defaults to the machine's."""
    with open("/proc/sys/kernel/random/uuid", encoding="ascii") as file:  # noqa: PTH123
        return file.read().strip()


def _link_drivers(paths: Paths) -> None:
    """Only the driver in this directory is loaded; networks, storage pools and others are not needed."""
    os.makedirs(paths.libvirt_drivers, exist_ok=True)  # noqa: PTH103
    source = _DRIVERS.format(f"{os.uname().machine}-linux-gnu")
    link = f"{paths.libvirt_drivers}/{_DRIVER}"
    if not os.path.lexists(link):
        os.symlink(f"{source}/{_DRIVER}", link)  # noqa: PTH211


def _changes(daemon: str) -> dict[str, int]:
    """The timestamps that validate a cached probe: last change of libvirt and QEMU, in seconds.

    The inode's change time is that of unpacking the image on this node, so it always differs from the cached value.
    Source: virQEMUCapsIsValid() and virUpdateSelfLastChanged() of libvirt.
    """
    machine = os.uname().machine
    drivers = _DRIVERS.format(f"{machine}-linux-gnu")
    loaded = [daemon, f"{drivers}/{_DRIVER}"]
    return {
        "qemuctime": int(os.stat(f"/usr/bin/qemu-system-{machine}").st_ctime),  # noqa: PTH116
        "selfctime": max(int(os.stat(path).st_ctime) for path in loaded if os.path.exists(path)),  # noqa: PTH110,PTH116
    }


def install_cache(source: str, target: str, changes: dict[str, int]) -> None:
    """Copy the image's cache, with the children of the root named in `changes` set to the given numbers.

    A file that is not XML is left out: libvirt queries QEMU again.
    """
    from launcher.hypervisor.xml_events import InvalidXml

    for folder, _, names in os.walk(source):
        into = target + folder[len(source) :]
        os.makedirs(into, mode=0o700, exist_ok=True)  # noqa: PTH103
        for name in names:
            with open(f"{folder}/{name}", "rb") as file:  # noqa: PTH123
                data = file.read()
            try:
                data = _with_numbers(data, changes)
            except InvalidXml as error:
                log(
                    "warning",
                    "the image's libvirt cache is damaged, QEMU is queried again",
                    file=name,
                    error=str(error),
                )
                continue
            with open(f"{into}/{name}", "wb") as file:  # noqa: PTH123
                file.write(data)


def _with_numbers(data: bytes, changes: dict[str, int]) -> bytes:
    """The document with new text in the children of its root that are named in `changes`. Raises InvalidXml."""
    from launcher.hypervisor.xml_events import end_of_tag, walk

    texts: list[tuple[int, int, bytes]] = []
    begin = -1

    def start(path: list[str], attributes: dict[str, str], index: int) -> None:
        nonlocal begin
        begin = index if len(path) == 2 and path[1] in changes and not attributes else -1

    def end(path: list[str], index: int) -> None:
        nonlocal begin
        if begin >= 0:
            text = end_of_tag(data, begin)
            if not data.endswith(b"/>", begin, text):
                texts.append((text, index, b"%d" % changes[path[1]]))
        begin = -1

    walk(data, start, end, _LARGEST_CACHE)
    for first, after, number in reversed(texts):
        data = data[:first] + number + data[after:]
    return data

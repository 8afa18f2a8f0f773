"""Paths in the launcher's pod (docs/architecture.md, "The launcher pod").

All derive from one root, so that tests can run launchers without containers (HYPERLET_ROOT).
Standard library only, with few imports: the supervisor imports this module.
"""

import os

USER = 107


class Paths:
    """The fixed paths of a pod, below `root` (`/` in a pod)."""

    def __init__(self, root: str = "/") -> None:
        self.root = root
        self.run = os.path.join(root, "run/hyperlet")  # noqa: PTH118 (pathlib costs the supervisor half a MiB)
        self.images = os.path.join(root, "images")  # noqa: PTH118
        self.volumes = os.path.join(root, "volumes")  # noqa: PTH118
        self.block_volumes = os.path.join(root, "dev/volumes")  # noqa: PTH118
        self.cloudinit = os.path.join(root, "cloudinit")  # noqa: PTH118
        self.termination_log = os.path.join(root, "dev/termination-log")  # noqa: PTH118
        self.wake = f"{self.run}/wake.fifo"
        self.socket = f"{self.run}/launcher.sock"
        self.serial_fifo = f"{self.run}/serial.fifo"
        self.serial_tail = f"{self.run}/serial.tail"
        self.serial_socket = f"{self.run}/serial.sock"
        self.vnc_socket = f"{self.run}/vnc.sock"
        self.screen = f"{self.run}/screen.ppm"
        self.agent_socket = f"{self.run}/agent.sock"
        self.state = f"{self.run}/state.json"
        self.request = f"{self.run}/sync.bin"
        self.disks = f"{self.run}/disks"
        self.media = f"{self.run}/media"
        self.home = f"{self.run}/libvirt"
        self.libvirt_config = f"{self.home}/config/libvirt"
        self.libvirt_runtime = f"{self.home}/run/libvirt"
        self.libvirt_cache = f"{self.home}/cache/libvirt"
        self.libvirt_output = f"{self.home}/output.log"
        self.libvirt_drivers = f"{self.home}/drivers"
        self.qemu_pids = f"{self.libvirt_runtime}/qemu/run"
        self.domain_log = f"{self.libvirt_cache}/qemu/log"

    def libvirt_socket(self, daemon: str) -> str:
        """The socket of `libvirtd` or `virtqemud`."""
        return f"{self.libvirt_runtime}/{'libvirt' if daemon == 'libvirtd' else daemon}-sock"


def from_environment() -> Paths:
    """The paths of this process's pod."""
    return Paths(os.environ.get("HYPERLET_ROOT", "/"))

"""`python -m guests`: build the tiny guest, or boot it on this terminal."""

from __future__ import annotations

import argparse
import os
import sys
import time

from guests import tiny
from guests.disk import KERNEL_ARGS


def _boot() -> None:
    guest = tiny.build()
    print(
        "Booting under software emulation; Ctrl-A X ends it. http://127.0.0.1:8080 is the guest's port 80.", flush=True
    )
    network = "user,model=virtio-net-pci,restrict=on,hostfwd=tcp:127.0.0.1:8080-:80"
    command = [
        "qemu-system-x86_64",
        "-accel",
        "tcg",
        "-M",
        "q35",
        "-cpu",
        "max",
        "-m",
        "96",
        "-nographic",
        "-nodefaults",
    ]
    command += ["-serial", "mon:stdio", "-kernel", str(guest.kernel), "-initrd", str(guest.initrd)]
    os.execvp(command[0], [*command, "-append", KERNEL_ARGS, "-nic", network])


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m guests", description=__doc__)
    parser.add_argument("verb", choices=["build", "boot"])
    if parser.parse_args().verb == "boot":
        _boot()
    started = time.monotonic()
    guest = tiny.build()
    for path in (guest.kernel, guest.initrd, guest.raw, guest.qcow2, guest.halt):
        print(f"{path.stat().st_size / 1e6:8.1f} MB  {path}")
    print(f"{time.monotonic() - started:.1f} s", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())

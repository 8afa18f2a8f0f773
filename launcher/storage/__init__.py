"""Volumes of the VM: finds and creates the files that QEMU opens."""

"""Names supported by the launcher's QEMU, libvirt and time zone database."""

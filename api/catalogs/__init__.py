"""Names that the launcher's QEMU, libvirt and time zone database know."""

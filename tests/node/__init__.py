"""Tests on this machine's libvirt, QEMU and network namespaces."""

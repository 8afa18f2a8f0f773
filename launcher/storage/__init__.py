"""From volumes to files that QEMU opens."""

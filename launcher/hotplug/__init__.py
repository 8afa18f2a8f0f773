"""Changes of a running domain: NICs, sizes of disks."""

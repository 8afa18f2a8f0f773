"""Kubelet device plugins for KVM, tun, vhost-net and bridges; RLIMIT_MEMLOCK for VFIO."""

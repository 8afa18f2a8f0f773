"""Images and volumes for launchers: containerd, mounts, ownership."""

"""Images and volumes of launchers: containerd, mounts, file ownership."""

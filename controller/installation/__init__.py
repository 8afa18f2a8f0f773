"""The KubeVirt CR: settings, status, and detected capabilities of the cluster."""

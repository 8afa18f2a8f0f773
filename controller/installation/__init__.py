"""The KubeVirt object: settings, status, and what the cluster is able to do."""

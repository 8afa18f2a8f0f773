"""The CSI driver of the test cluster: two kinds of storage, on files of this machine (docs/cluster.md)."""

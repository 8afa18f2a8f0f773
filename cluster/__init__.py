"""A real two-node Kubernetes on this machine, from Debian packages, for trying Hyperlet and for its tests."""

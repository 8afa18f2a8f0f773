"""How we touch the world: the Kubernetes API, caches and queues, gRPC, netlink, processes, logs."""

"""Shared infrastructure: Kubernetes client, caches and work queues, gRPC, netlink, processes, TLS, logs."""

"""Hyperlet on a cluster: `make up` and `make down`."""

"""The ports of hyperlet's components in their pods, as in manifests/."""

GATEWAY = 8443
"""HTTPS: webhooks and the aggregated API."""
HANDLER = 8444
"""gRPC with mutual TLS, for the gateway."""
HEALTH = 8080
"""Probes and metrics of every component."""

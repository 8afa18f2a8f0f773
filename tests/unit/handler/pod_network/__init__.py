"""Tests of handler.pod_network."""

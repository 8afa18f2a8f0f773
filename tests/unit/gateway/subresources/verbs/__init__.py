"""Tests of gateway.subresources.verbs."""

"""Tests of gateway.subresources."""

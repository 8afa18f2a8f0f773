"""Tests of gateway.subresources.streams."""

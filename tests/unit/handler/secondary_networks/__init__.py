"""Tests of handler.secondary_networks."""

"""Tests of handler.node."""

"""Tests of handler.devices."""

"""Tests of handler.vmi."""

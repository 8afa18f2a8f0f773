"""Tests of handler."""

"""Tests of handler.storage."""

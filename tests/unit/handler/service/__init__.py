"""Tests of handler.service."""

"""Tests of launcher.domain."""

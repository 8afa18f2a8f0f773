"""Tests of launcher.network."""

"""Tests of launcher.supervisor."""

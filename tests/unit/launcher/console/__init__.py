"""Tests of launcher.console."""

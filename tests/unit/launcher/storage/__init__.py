"""Tests of launcher.storage."""

"""Tests of launcher.vm."""

"""Tests of launcher.guest."""

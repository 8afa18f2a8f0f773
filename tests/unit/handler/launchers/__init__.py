"""Tests of handler.launchers."""

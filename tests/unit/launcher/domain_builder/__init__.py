"""Tests of launcher.domain_builder."""

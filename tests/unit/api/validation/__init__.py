"""Tests of api.validation."""

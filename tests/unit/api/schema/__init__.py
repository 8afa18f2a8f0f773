"""Tests of api.schema."""

"""Tests of api.kubevirt."""

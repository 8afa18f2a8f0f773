"""Tests of cni."""

"""Tests of cluster.csi."""

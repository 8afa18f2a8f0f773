"""Tests of api.k8s."""

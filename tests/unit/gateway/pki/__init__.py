"""Tests of gateway.pki."""

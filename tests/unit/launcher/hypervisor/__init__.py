"""Tests of launcher.hypervisor."""

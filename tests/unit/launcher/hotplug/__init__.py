"""Tests of launcher.hotplug."""

"""Tests of controller.launcher_pod."""

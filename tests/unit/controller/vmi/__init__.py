"""Tests of controller.vmi."""

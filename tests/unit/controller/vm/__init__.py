"""Tests of controller.vm."""

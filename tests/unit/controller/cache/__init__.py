"""Tests of controller.cache."""

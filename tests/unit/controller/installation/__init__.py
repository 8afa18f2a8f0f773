"""Tests of controller.installation."""

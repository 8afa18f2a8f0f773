"""Fakes of what hyperlet talks to, for unit and node tests."""

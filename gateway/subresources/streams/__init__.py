"""Consoles, screens and forwarded ports."""

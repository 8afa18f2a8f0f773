"""Unit tests: one folder a package, named as it is."""

"""Benchmarks. `python -m bench list` lists them; docs/benchmarks.md explains the results."""

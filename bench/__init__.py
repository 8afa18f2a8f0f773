"""Commands that measure. `python -m bench list` names them; docs/benchmarks.md says how to read them."""

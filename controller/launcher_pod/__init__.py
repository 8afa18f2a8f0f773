"""The launcher pod of a VMI: its spec, in-place changes, and errors that prevent its start."""

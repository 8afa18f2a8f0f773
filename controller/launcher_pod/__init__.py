"""The launcher pod of a VMI: what is in it, what changes in it, what keeps it from starting."""

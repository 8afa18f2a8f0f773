"""VM → VMI → launcher pod: a pure `plan()` and a thin `apply()` for every kind."""

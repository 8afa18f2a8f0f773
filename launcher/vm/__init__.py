"""The VM of this pod: lifecycle, reports, state files."""

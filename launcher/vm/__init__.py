"""The one virtual machine of this pod: lifecycle, reports, state files."""

"""What must hold for safety, across packages."""

"""DHCP for the guest."""

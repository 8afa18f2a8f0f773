"""Subresources that act on VMs and VMIs."""

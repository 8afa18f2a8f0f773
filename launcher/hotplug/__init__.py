"""Changes of a running domain: NIC hot-plug and disk resize."""

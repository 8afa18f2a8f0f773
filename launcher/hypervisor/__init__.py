"""libvirt: its daemon, the connection to it, events, and what it says of the domain."""

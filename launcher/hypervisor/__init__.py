"""libvirt: its daemon, the connection to it, events and domain states."""

"""Bounds of the messages of launcher.proto and node.proto. Senders keep them, receivers check them."""

MESSAGE_BYTES = 1 << 20
"""Of any message."""
CHUNK_BYTES = 64 << 10
"""Data in one message of a stream: consoles, VNC."""
STRING_BYTES = 256
"""A string from the guest, and the name of a console's user."""
REASON_BYTES = 1024
"""Report.message."""
NICS = 64
"""Report.nics, and the interfaces of a VM."""
INTERFACES, ADDRESSES = 256, 32
"""GuestInfo.interfaces, and the addresses of each: with STRING_BYTES and ADDRESS_BYTES they fit into a message."""
ADDRESS_BYTES = 64
USERS, FILESYSTEMS, FILESYSTEM_DISKS = 1000, 1000, 64
REPLY_BYTES = 900 << 10
"""Screenshots and lists from the guest; leaves room for the rest of the message."""

"""The protocol of bidirectional gRPC streams."""

TAKEN = (("hyperlet-taken", "1"),)
"""Initial metadata that a server sends when it has accepted a stream, as the first message may come much later. A
refused stream has none."""

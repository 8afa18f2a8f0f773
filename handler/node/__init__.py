"""The node: heartbeat, labels, serving certificate, processes of its pods."""

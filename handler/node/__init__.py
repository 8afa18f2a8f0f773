"""This node: heartbeat, labels, certificate, processes of its pods."""

"""Launchers of this node: discovery, start limiter, connection, frame budget."""

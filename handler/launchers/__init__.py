"""The launchers of this node: found, started, connected to, kept in bounds."""

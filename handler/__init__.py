"""The node daemon: connects to the launchers of its node, drives their VMs, and reports to the API server."""

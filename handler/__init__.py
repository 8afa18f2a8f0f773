"""The node's daemon: finds its launchers, drives them, and reports to the API server."""

"""PID 1 of the pod: stdlib only."""

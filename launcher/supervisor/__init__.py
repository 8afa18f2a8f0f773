"""PID 1 of the pod. Standard library only."""

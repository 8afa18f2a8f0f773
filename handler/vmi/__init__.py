"""The VMI reconciler: from the hand-over to the end of the guest."""

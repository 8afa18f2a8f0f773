"""The VMI reconciler: from the hand-over by the controller to the end of the guest."""

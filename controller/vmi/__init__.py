"""VirtualMachineInstance, until the hand-over to the handler and again from its end."""

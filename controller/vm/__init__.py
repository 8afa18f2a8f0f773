"""VirtualMachine: plan, run strategies, template changes, revisions, status."""

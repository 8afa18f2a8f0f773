"""VirtualMachine: run strategies, template changes, revisions, status."""

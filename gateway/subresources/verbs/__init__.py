"""The verbs of VMs and VMIs."""

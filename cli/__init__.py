"""hyperctl, the command line: the verbs people know from virtctl. Also the kubectl plugin `kubectl-virt`."""

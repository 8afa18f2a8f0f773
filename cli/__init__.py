"""hyperctl, the command line, with virtctl's commands. Also the kubectl plugin `kubectl-virt`."""

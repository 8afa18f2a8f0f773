"""Networks of a launcher's pod: from the pod's interfaces to the guest's NICs."""

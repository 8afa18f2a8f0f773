"""The aggregated API `subresources.kubevirt.io`: verbs, consoles and ports of virtual machines."""

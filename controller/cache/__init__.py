"""The controller's view of the cluster: stores (informer caches), indexes, node health."""

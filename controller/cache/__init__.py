"""What the controller knows of the cluster: the informers' stores and what follows from them."""

"""The Kubernetes API: metadata, scalar formats, and the objects that hyperlet reads."""

"""The version of hyperlet, said once: the package, the User-Agent and `KubeVirt.status` take it from here."""

VERSION = "0.1.0"
API_LEVEL = "1.9.0"
"""The KubeVirt release whose API is implemented: what clients compare their own version with."""

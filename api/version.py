"""The version of hyperlet, used by the package, the User-Agent and `KubeVirt.status`."""

VERSION = "0.1.0"
API_LEVEL = "1.9.0"
"""The KubeVirt release whose API is implemented; clients compare their version with it."""

"""The version of hyperlet, said once: the package, the User-Agent and `KubeVirt.status` take it from here."""

VERSION = "0.1.0"

"""CNI errors: a code of the specification, and a message.

Source: CNI specification 1.1.0, section "Error"; codes from 100 on are the plugin's own.
"""

VERSION = 1  # incompatible CNI version
CONTAINER = 3  # container unknown or does not exist
ENVIRONMENT = 4  # a necessary environment variable is missing or invalid
IO = 5  # I/O failure
DECODE = 6  # decoding failed: the content is not JSON
CONFIG = 7  # invalid network configuration
NETNS = 8  # the network namespace is missing or invalid
LATER = 11  # try again later
UNAVAILABLE = 50  # STATUS: ADD cannot work now

KERNEL = 100  # the kernel rejected a change of the network
DIFFERS = 101  # CHECK: the network is not as ADD left it
DELEGATE = 102  # an IPAM plugin could not be run, or its output is invalid
FORBIDDEN = 103  # the administrator's allow-list does not contain the sysctl
INTERNAL = 199  # internal error


class CniError(Exception):
    """The error returned to the runtime on stdout instead of a result."""

    def __init__(self, code: int, message: str, details: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.details = details

    def fields(self, version: str) -> dict[str, object]:
        """The error as JSON object of the specification."""
        found: dict[str, object] = {"cniVersion": version, "code": self.code, "msg": self.message}
        if self.details:
            found["details"] = self.details
        return found

"""The errors of CNI: a code of the specification, a message for a person.

Source: CNI specification 1.1.0, section "Error"; codes from 100 on are the plugin's own.
"""

VERSION = 1  # incompatible CNI version
FIELD = 2  # a field has a value that is not supported
CONTAINER = 3  # container unknown or does not exist
ENVIRONMENT = 4  # a necessary environment variable is missing or invalid
IO = 5  # I/O failure
DECODE = 6  # what came is not JSON
CONFIG = 7  # invalid network configuration
NETNS = 8  # the network namespace is missing or is none
LATER = 11  # try again later
UNAVAILABLE = 50  # STATUS: an ADD would fail now

KERNEL = 100  # the kernel refused a change of the network
DIFFERS = 101  # CHECK: the network is not as ADD left it
DELEGATE = 102  # an IPAM plugin could not be run, or answered nonsense
FORBIDDEN = 103  # the administrator's allow-list does not have the sysctl
INTERNAL = 199  # a fault of this program


class CniError(Exception):
    """What the runtime gets on stdout instead of a result."""

    def __init__(self, code: int, message: str, details: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.details = details

    def fields(self, version: str) -> dict[str, object]:
        """The JSON object of the specification."""
        found: dict[str, object] = {"cniVersion": version, "code": self.code, "msg": self.message}
        if self.details:
            found["details"] = self.details
        return found

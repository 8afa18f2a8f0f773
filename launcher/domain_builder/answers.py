"""Responses of the child process (`launcher.domain_builder.child`): JSON, described once for both sides."""

from typing import TypedDict

DhcpOptions = dict[str, list[list[int | str]]]
"""Extra DHCP options by interface: pairs of code and value in hexadecimal."""


class BuiltDisk(TypedDict):
    """A disk of the domain. `size`: in bytes."""

    volume: str
    target: str
    size: int


class ClaimedDisk(TypedDict):
    """A disk on a claim. `path`: its file or device. `writes`: QEMU writes to it. `shares`: QEMU lets others write."""

    volume: str
    claim: str
    path: str
    writes: bool
    shares: bool


class BuiltDomain(TypedDict):
    """The domain, and what the server must remember."""

    domain: str
    xml: str
    paused: bool
    disks: list[BuiltDisk]
    claims: list[ClaimedDisk]
    dhcp_options: DhcpOptions


class BuiltNics(TypedDict):
    """The XML of each interface to plug in, or its error."""

    devices: dict[str, str]
    errors: dict[str, str]
    dhcp_options: DhcpOptions


class GrownDisks(TypedDict):
    """Sizes in bytes that disks can be grown to, by volume."""

    sizes: dict[str, int]


class BuilderError(TypedDict):
    """Why the request failed. `code`: a gRPC status name."""

    code: str
    message: str


class FailedBuild(TypedDict):
    """The response to a failed request."""

    error: BuilderError


Answer = BuiltDomain | BuiltNics | GrownDisks | FailedBuild

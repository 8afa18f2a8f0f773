"""A NIC of the running domain, and its XML with another link state."""

from dataclasses import dataclass

MOST = 64
"""Same as in a Report."""
ALIAS = "ua-nic_"
"""Same as launcher.domain.nics.ALIAS, whose module the server does not import."""


@dataclass(frozen=True, slots=True)
class LiveNic:
    """One NIC. `xml`: libvirt's element. Virtual functions have the model sriov and no known MAC."""

    name: str
    mac: str
    link_up: bool
    queues: int
    model: str
    xml: str


def with_link(nic: LiveNic, up: bool) -> str:
    """The element of a NIC with its link up or down."""
    from xml.etree import ElementTree  # 0.4 MiB, which most VMs never need

    element = ElementTree.fromstring(nic.xml)
    link = element.find("link")
    if link is None:
        link = ElementTree.SubElement(element, "link")
    link.set("state", "up" if up else "down")
    return ElementTree.tostring(element, encoding="unicode")

"""The NICs of a domain, parsed from libvirt's XML.

libvirt writes one element per line, attributes in a fixed order and with single quotes, and escapes user input; an XML
parser would cost every VM 0.5 MiB.
"""

import re
from dataclasses import dataclass

MOST = 64
"""Same as in a Report."""
ALIAS = "ua-nic_"
"""Same as launcher.domain.nics.ALIAS, whose module the server does not import."""
_DEVICE = re.compile(r"^    <(interface|hostdev) .*?^    </\1>\n", re.DOTALL | re.MULTILINE)
_NAME = re.compile(r"<alias name='ua-nic_([^']*)'/>")
_MAC = re.compile(r"<mac address='([^']*)'/>")
_MODEL = re.compile(r"<model type='([^']*)'/>")
_QUEUES = re.compile(r"<driver [^>]*\bqueues='(\d+)'")
_LINK = re.compile(r"\n *<link state='(up|down)'/>")


@dataclass(frozen=True, slots=True)
class LiveNic:
    """One NIC. `xml`: libvirt's element. Virtual functions have the model sriov and no known MAC."""

    name: str
    mac: str
    link_up: bool
    queues: int
    model: str
    xml: str


def live_nics(domain: str) -> tuple[LiveNic, ...]:
    """The NICs with hyperlet's aliases, in the domain's order."""
    found = (_nic(match.group(), match.group(1)) for match in _DEVICE.finditer(domain))
    return tuple(nic for nic in found if nic.name)[:MOST]


def _nic(xml: str, kind: str) -> LiveNic:
    return LiveNic(
        name=_first(_NAME, xml),
        mac=_first(_MAC, xml),
        link_up=_first(_LINK, xml) != "down",
        queues=int(_first(_QUEUES, xml) or 1),
        model=_first(_MODEL, xml) if kind == "interface" else "sriov",
        xml=xml,
    )


def _first(pattern: re.Pattern[str], text: str) -> str:
    match = pattern.search(text)
    return match.group(1) if match else ""


def with_link(nic: LiveNic, up: bool) -> str:
    """The element of a NIC with its link up or down."""
    rest = _LINK.sub("", nic.xml)
    head, model, tail = rest.partition("\n      <model ")
    return f"{head}\n      <link state='{'up' if up else 'down'}'/>{model}{tail}"

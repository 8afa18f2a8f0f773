"""Reads libvirt's XML of a domain: accelerator, machine type, NICs, free PCI ports."""

from dataclasses import dataclass

from launcher.hotplug.live_nics import ALIAS, MOST, LiveNic
from launcher.hypervisor.xml_events import Attributes, end_of_tag, walk

_AGENT = "org.qemu.guest_agent.0"


@dataclass(frozen=True, slots=True)
class DomainDescription:
    """What libvirt's XML says about a running domain.

    `accelerator`: kvm or tcg. `nics`: those with hyperlet's aliases, in the domain's order. `free_ports`: number of PCI
    Express root ports without a device.
    """

    accelerator: str
    machine: str
    agent_connected: bool
    nics: tuple[LiveNic, ...]
    free_ports: int
    has_screen: bool


def describe(text: str) -> DomainDescription:
    """The description of a domain. Raises InvalidXml."""
    data = text.encode()
    reader = _DomainReader(data)
    walk(data, reader.start, reader.end)
    return reader.description()


class _DomainReader:
    """Collects the parts of a DomainDescription."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._type = self._machine = ""
        self._agent = self._screen = False
        self._ports: set[int] = set()
        self._buses: set[int] = set()
        self._nics: list[LiveNic] = []
        self._begin = 0
        self._parts: dict[str, Attributes] = {}
        """Of the current device: the attributes of each of its children."""

    def start(self, path: list[str], attributes: Attributes, index: int) -> None:
        """See walk."""
        match path:
            case ["domain"]:
                self._type = attributes.get("type", "")
            case ["domain", "os", "type"]:
                self._machine = attributes.get("machine", "")
            case ["domain", "devices", kind]:
                self._begin, self._parts = index, {}
                if kind == "controller" and attributes.get("model") == "pcie-root-port":
                    self._ports.add(_number(attributes.get("index", "")))
            case ["domain", "devices", kind, child]:
                self._parts[child] = attributes
                if child == "address" and attributes.get("type") == "pci":
                    self._buses.add(_number(attributes.get("bus", "")))
                elif (kind, child, attributes.get("name")) == ("channel", "target", _AGENT):
                    self._agent = attributes.get("state") == "connected"
                elif (kind, child) == ("video", "model"):
                    self._screen = self._screen or attributes.get("type") != "none"

    def end(self, path: list[str], index: int) -> None:
        """See walk."""
        match path:
            case ["domain", "devices", "interface" | "hostdev" as kind]:
                alias = self._part("alias", "name")
                if alias.startswith(ALIAS) and len(self._nics) < MOST:
                    self._nics.append(self._nic(kind, alias.removeprefix(ALIAS), index))

    def _nic(self, kind: str, name: str, end: int) -> LiveNic:
        return LiveNic(
            name=name,
            mac=self._part("mac", "address"),
            link_up=self._part("link", "state") != "down",
            queues=_number(self._part("driver", "queues")) or 1,
            model=self._part("model", "type") if kind == "interface" else "sriov",
            xml=self._data[self._begin : end_of_tag(self._data, end)].decode(),
        )

    def _part(self, child: str, attribute: str) -> str:
        return self._parts.get(child, {}).get(attribute, "")

    def description(self) -> DomainDescription:
        """The result, after the end of the document."""
        return DomainDescription(
            accelerator="kvm" if self._type == "kvm" else "tcg",
            machine=self._machine,
            agent_connected=self._agent,
            nics=tuple(self._nics),
            free_ports=len(self._ports - self._buses),
            has_screen=self._screen,
        )


def _number(text: str) -> int:
    """A decimal or hexadecimal number; 0 for anything else."""
    try:
        return int(text, 0)
    except ValueError:
        return 0

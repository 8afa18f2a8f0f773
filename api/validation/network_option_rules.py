"""Rules for DHCP options and forwarded ports of an interface."""

from collections.abc import Iterator

from api import names
from api.errors import Fault
from api.kubevirt.networks import DHCPOptions, Interface
from api.validation import syntax
from api.validation.domain_rules import check

MAX_PORTS = 1024


def option_faults(interface: Interface, path: str) -> Iterator[Fault]:
    """Faults of ports, portRanges and dhcpOptions."""
    yield from _ports(interface, path)
    yield from _overlaps(interface, path)
    if interface.dhcpOptions is None:
        return
    if interface.sriov is not None:
        yield Fault(
            f"{path}.dhcpOptions",
            names.FAULT_INVALID,
            "not supported for sriov: hyperlet does not serve DHCP on an sriov interface",
        )
    yield from _dhcp(interface.dhcpOptions, f"{path}.dhcpOptions")


def _ports(interface: Interface, path: str) -> Iterator[Fault]:
    for field in ("ports", "portRanges"):
        entries = getattr(interface, field)
        if entries and (interface.bridge is not None or interface.sriov is not None):
            yield Fault(f"{path}.{field}", names.FAULT_INVALID, f"{field} requires masquerade")
        if entries and len(entries) > MAX_PORTS:
            yield Fault(
                f"{path}.{field}", names.FAULT_INVALID, f"must have at most {MAX_PORTS} entries: use portRanges"
            )
    named: set[str] = set()
    for index, port in enumerate(interface.ports or ()):
        if port.name:
            here = f"{path}.ports[{index}].name"
            yield from check(syntax.port_name(port.name), here)
            if port.name in named:
                yield Fault(here, names.FAULT_DUPLICATE, f"duplicate port name {port.name[:63]!r}")
            named.add(port.name)
    for index, span in enumerate(interface.portRanges or ()):
        if span.start > span.end:
            yield Fault(
                f"{path}.portRanges[{index}].end",
                names.FAULT_INVALID,
                f"{span.end} must not be less than start ({span.start})",
            )


def _overlaps(interface: Interface, path: str) -> Iterator[Fault]:
    """Ports that are listed twice, alone or in ranges."""
    spans = [
        *(
            (port.protocol or "TCP", port.port, port.port, f"{path}.ports[{index}].port")
            for index, port in enumerate((interface.ports or ())[:MAX_PORTS])
        ),
        *(
            (span.protocol, span.start, span.end, f"{path}.portRanges[{index}]")
            for index, span in enumerate((interface.portRanges or ())[:MAX_PORTS])
        ),
    ]
    highest: dict[str, int] = {}
    for protocol, first, last, where in sorted(spans, key=lambda span: span[:2]):
        if first <= highest.get(protocol, 0):
            yield Fault(where, names.FAULT_DUPLICATE, f"port {first}/{protocol} is listed twice")
        highest[protocol] = max(last, highest.get(protocol, 0))


def _dhcp(options: DHCPOptions, path: str) -> Iterator[Fault]:
    for index, server in enumerate(options.ntpServers or ()):
        yield from check(syntax.ipv4_address(server), f"{path}.ntpServers[{index}]")
    if options.tftpServerName is not None:
        yield from check(syntax.word(options.tftpServerName, 253), f"{path}.tftpServerName")
    if options.bootFileName is not None:
        yield from check(syntax.printable(options.bootFileName, 127), f"{path}.bootFileName")
    numbers: set[int] = set()
    for index, private in enumerate(options.privateOptions or ()):
        here = f"{path}.privateOptions[{index}]"
        yield from check(syntax.printable(private.value, 255), f"{here}.value")
        if private.option in numbers:
            yield Fault(f"{here}.option", names.FAULT_DUPLICATE, f"option {private.option} is set twice")
        numbers.add(private.option)

#!/usr/bin/python3 -IE
"""`virsh` of the launcher's container, for diagnosis: read-only access to this pod's domain.

    kubectl exec POD -c compute -- virsh dumpxml
    hyperctl virsh VMI domblklist

The commands are named as in virsh and are read-only: change a VM by its spec. The domain argument is optional.
Source: virsh(1), https://libvirt.org/manpages/virsh.html.
"""

import json
import os
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable, Sequence
from typing import Any

RUNTIME = "/run/hyperlet/libvirt/run/libvirt"
DAEMONS = ("virtqemud-sock", "libvirt-sock")
STATES = ("no state", "running", "idle", "paused", "in shutdown", "shut off", "crashed", "pmsuspended")
DEEPEST = 60
"""Timeout of the guest agent in seconds."""


class UsageError(Exception):
    """Invalid command line, or no domain. The text is shown to the user."""


def _table(rows: Sequence[tuple[str, ...]]) -> str:
    widths = [max(len(row[index]) for row in rows) for index in range(len(rows[0]))]
    padded = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in rows]
    return "\n".join("  ".join(row).rstrip() for row in padded)


def listing(domains: list[Any]) -> str:
    """`virsh list`."""
    rows = [("Id", "Name", "State")]
    rows += [(str(each.ID()), each.name(), STATES[each.state()[0]]) for each in domains]
    return _table(rows)


def blocks(xml: str) -> str:
    """`virsh domblklist`, from libvirt's XML of a domain."""
    rows: list[tuple[str, ...]] = [("Target", "Bus", "Source")]
    for disk in ET.fromstring(xml).iterfind("devices/disk"):
        target, source = disk.find("target"), disk.find("source")
        place = next(iter(source.attrib.values()), "-") if source is not None else "-"
        rows.append((*((target.get("dev", "-"), target.get("bus", "-")) if target is not None else ("-", "-")), place))
    return _table(rows)


def interfaces(xml: str) -> str:
    """`virsh domiflist`."""
    rows: list[tuple[str, ...]] = [("Interface", "Model", "MAC", "Link")]
    for card in ET.fromstring(xml).iterfind("devices/interface"):

        def at(path: str, name: str, card: ET.Element = card) -> str:
            found = card.find(path)
            return (found.get(name) if found is not None else None) or "-"

        link = at("link", "state")
        rows.append((at("target", "dev"), at("model", "type"), at("mac", "address"), "up" if link == "-" else link))
    return _table(rows)


def info(domain: Any) -> str:
    """`virsh dominfo`."""
    state, most, memory, cpus, nanoseconds = domain.info()
    rows = [
        ("Id:", str(domain.ID())),
        ("Name:", domain.name()),
        ("UUID:", domain.UUIDString()),
        ("State:", STATES[state]),
        ("CPU(s):", str(cpus)),
        ("CPU time:", f"{nanoseconds / 1e9:.1f} s"),
        ("Max memory:", f"{most} KiB"),
        ("Used memory:", f"{memory} KiB"),
    ]
    return _table(rows)


def _stats(connection: Any, domain: Any) -> str:
    (_, found), *_ = connection.domainListGetStats([domain])
    return "\n".join(f"{name}={value}" for name, value in found.items())


def _refuse_changes(command: str, prefixes: tuple[str, ...]) -> None:
    """Raises UsageError for a JSON command that may modify the domain."""
    try:
        name = str(json.loads(command)["execute"])
    except (ValueError, LookupError, TypeError):
        raise UsageError('not a JSON command, for example \'{"execute": "query-block"}\'') from None
    if not name.startswith(prefixes):
        raise UsageError(f"{name[:60]!r} may modify the domain: names must start with {', '.join(prefixes)}")


def _monitor(domain: Any, words: list[str]) -> str:
    human = "--hmp" in words
    command = " ".join(word for word in words if not word.startswith("--"))
    if not human:
        _refuse_changes(command, ("query-",))
    elif command.split()[:1] != ["info"]:
        raise UsageError("--hmp allows only `info …`: other commands may modify the domain")
    import libvirt_qemu  # type: ignore[import-untyped]

    text: str = libvirt_qemu.qemuMonitorCommand(domain, command, 1 if human else 0)
    return text


def _agent(domain: Any, words: list[str]) -> str:
    command = " ".join(words)
    _refuse_changes(command, ("guest-get-", "guest-network-get-", "guest-info", "guest-ping"))
    import libvirt_qemu

    text: str = libvirt_qemu.qemuAgentCommand(domain, command, DEEPEST, 0)
    return json.dumps(json.loads(text), indent=2)


VERBS: dict[str, Callable[[Any, Any, list[str]], str]] = {
    "list": lambda connection, _domain, _words: listing(connection.listAllDomains()),
    "dumpxml": lambda _connection, domain, _words: domain.XMLDesc(),
    "dominfo": lambda _connection, domain, _words: info(domain),
    "domstate": lambda _connection, domain, _words: STATES[domain.state()[0]],
    "domblklist": lambda _connection, domain, _words: blocks(domain.XMLDesc()),
    "domiflist": lambda _connection, domain, _words: interfaces(domain.XMLDesc()),
    "domstats": lambda connection, domain, _words: _stats(connection, domain),
    "qemu-monitor-command": lambda _connection, domain, words: _monitor(domain, words),
    "qemu-agent-command": lambda _connection, domain, words: _agent(domain, words),
    "capabilities": lambda connection, _domain, _words: connection.getCapabilities(),
    "version": lambda connection, *_: f"libvirt {connection.getLibVersion()}, QEMU {connection.getVersion()}",
}
WITHOUT_DOMAIN = frozenset({"list", "capabilities", "version"})


def run(connection: Any, words: list[str]) -> str:
    """The output of a command. Raises UsageError, libvirtError."""
    verb, *rest = words or ["help"]
    if verb not in VERBS:
        raise UsageError(f"unknown command {verb!r}; this virsh is read-only: {', '.join(VERBS)}")
    if verb in WITHOUT_DOMAIN:
        return VERBS[verb](connection, None, rest)
    domains = connection.listAllDomains()
    names = {word for domain in domains for word in (domain.name(), str(domain.ID()), domain.UUIDString())}
    if rest and rest[0] in names:
        rest = rest[1:]
    if not domains:
        raise UsageError("there is no domain: the VM has not been started in this pod, or has ended")
    return VERBS[verb](connection, domains[0], rest)


def main() -> int:
    """Run the command line of this process."""
    import libvirt

    libvirt.registerErrorHandler(lambda *_: None, None)
    sockets = [path for name in DAEMONS if os.path.exists(path := f"{RUNTIME}/{name}")]  # noqa: PTH110
    if not sockets:
        print("virsh: no libvirt daemon: use the container `compute` after the VM has started", file=sys.stderr)
        return 1
    try:
        connection = libvirt.open(f"qemu+unix:///session?socket={sockets[0]}")
        print(run(connection, sys.argv[1:]))
    except (libvirt.libvirtError, UsageError, ValueError) as error:
        print(f"virsh: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

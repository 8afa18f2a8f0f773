"""Network configurations and results, every field typed. Source: CNI specification 1.1.0; docs/cni.md has the tables.

Values out of range and fields of the wrong type raise CNI error 7 with the field's path. Unknown fields are ignored, as
the specification requires. `null` is the same as an absent field.
"""

import ipaddress
import re
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta, Struct, field

from cni import errors, version
from cni.errors import CniError

_NETWORK = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.\-]*")
_MAC = re.compile(r"[0-9a-fA-F]{2}([:-][0-9a-fA-F]{2}){5}")

Mtu = Annotated[int, Meta(ge=0, le=65535)]
VlanId = Annotated[int, Meta(ge=1, le=4094)]
Name = Annotated[str, Meta(max_length=4096)]


class Dns(Struct, omit_defaults=True):
    """The `dns` field of configurations and results."""

    nameservers: list[Name] | None = None
    domain: Name | None = None
    search: list[Name] | None = None
    options: list[Name] | None = None


class VlanTrunk(Struct):
    """One entry of `vlanTrunk`: a range, an id, or both."""

    minID: VlanId | None = None
    maxID: VlanId | None = None
    id: VlanId | None = None


class Mac(Struct):
    """An object of which only the MAC is used."""

    mac: str | None = None


class BridgeArgs(Struct):
    cni: Mac | None = None


class ValidAttachment(Struct):
    """An attachment that GC must keep."""

    containerID: str
    ifname: str


class Common(Struct, kw_only=True):
    """Fields common to all plugins. `decode` requires `name` and `cniVersion`."""

    cniVersion: str | None = None
    name: str | None = None
    type: str | None = None
    dns: Dns | None = None
    prevResult: dict[str, Any] | None = None
    valid: list[ValidAttachment] | None = field(name="cni.dev/valid-attachments", default=None)


class BridgeConf(Common, kw_only=True):
    """The configuration of cnv-bridge."""

    bridge: str | None = None
    mtu: Mtu | None = None
    isGateway: bool | None = None
    isDefaultGateway: bool | None = None
    forceAddress: bool | None = None
    ipMasq: bool | None = None
    ipMasqBackend: str | None = None
    hairpinMode: bool | None = None
    promiscMode: bool | None = None
    vlan: Annotated[int, Meta(ge=0, le=4094)] | None = None
    vlanTrunk: list[VlanTrunk] | None = None
    preserveDefaultVlan: bool | None = None
    macspoofchk: bool | None = None
    portIsolation: bool | None = None
    enabledad: bool | None = None
    disableContainerInterface: bool | None = None
    ipam: dict[str, Any] | None = None
    runtimeConfig: Mac | None = None
    args: BridgeArgs | None = None


class Tunables(Struct, kw_only=True):
    """Settings changed by cnv-tuning."""

    sysctl: dict[str, str] | None = None
    mac: str | None = None
    promisc: bool | None = None
    mtu: Mtu | None = None
    allmulti: bool | None = None
    txQLen: Annotated[int, Meta(ge=0, le=0xFFFFFFFF)] | None = None


class TuningArgs(Struct):
    cni: Tunables | None = None


class TuningConf(Common, kw_only=True):
    """The configuration of cnv-tuning."""

    sysctl: dict[str, str] | None = None
    mac: str | None = None
    promisc: bool | None = None
    mtu: Mtu | None = None
    allmulti: bool | None = None
    txQLen: Annotated[int, Meta(ge=0, le=0xFFFFFFFF)] | None = None
    dataDir: Name | None = None
    allowedArgs: list[Name] | None = None
    runtimeConfig: Mac | None = None
    args: TuningArgs | None = None


C = TypeVar("C", bound=Common)
_decoders: dict[type, Any] = {}


def decode(raw: bytes, kind: type[C]) -> C:
    """The configuration of a call. Raises CniError (1, 6, 7)."""
    decoder = _decoders.setdefault(kind, msgspec.json.Decoder(kind))
    try:
        conf: C = decoder.decode(raw)
    except msgspec.ValidationError as error:
        raise CniError(errors.CONFIG, f"the network configuration is not valid: {error}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CniError(errors.DECODE, f"the network configuration on stdin is not JSON: {error}") from None
    if conf.cniVersion not in version.SUPPORTED:
        given = repr(conf.cniVersion) if conf.cniVersion else "no cniVersion"
        raise CniError(
            errors.VERSION,
            f"the network configuration has {given[:80]}; supported: {', '.join(version.SUPPORTED)}",
        )
    if not conf.name or not _NETWORK.fullmatch(conf.name) or len(conf.name) > 250:
        raise CniError(
            errors.CONFIG,
            "$.name: the network needs a name of letters, digits, '_', '.' and '-', the first a letter or digit, "
            f"at most 250 of them; it has {str(conf.name)[:80]!r}",
        )
    return conf


def decode_for_del(raw: bytes, kind: type[C], needed: Mapping[str, type]) -> C | None:
    """The configuration, or of an invalid one the part that DEL needs: it must not block pod deletion.

    `needed`: the fields besides version and name, with their JSON types. None if these are invalid, too; ADD fails then
    as well. Raises CniError (1, 6).
    """
    try:
        return decode(raw, kind)
    except CniError as error:
        if error.code != errors.CONFIG:
            raise
    given = msgspec.json.decode(raw)
    if not isinstance(given, dict):
        return None
    kept = {name: given.get(name) for name in ("cniVersion", "name")}
    kept |= {name: given[name] for name, wanted in needed.items() if name in given and isinstance(given[name], wanted)}
    try:
        return decode(msgspec.json.encode(kept), kind)
    except CniError:
        return None


def mac(value: str, where: str) -> str:
    """A unicast MAC in lower case with colons. Raises CniError (7); `where`: path of the field."""
    if not _MAC.fullmatch(value):
        raise CniError(errors.CONFIG, f"{where}: {value[:80]!r} is not a MAC address (six bytes, 02:00:00:00:00:01)")
    if int(value[:2], 16) & 1 or not int(value.replace(":", "").replace("-", ""), 16):
        raise CniError(errors.CONFIG, f"{where}: {value!r} is a multicast or all-zero address")
    return value.lower().replace("-", ":")


class ResultInterface(Struct, omit_defaults=True):
    """An interface of a result; `sandbox` is the path of its namespace."""

    name: str
    mac: str = ""
    mtu: int = 0
    sandbox: str = ""


class ResultIp(Struct, omit_defaults=True, kw_only=True):
    """An address of a result. `version` ("4", "6"): up to 0.4.0."""

    version: str | None = None
    interface: int | None = None
    address: str
    gateway: str | None = None


class ResultRoute(Struct, omit_defaults=True, kw_only=True):
    """A route of a result. Fields after the first two: since 1.1.0."""

    dst: str
    gw: str | None = None
    mtu: int | None = None
    advmss: int | None = None
    priority: int | None = None
    table: int | None = None
    scope: int | None = None


class CniResult(Struct, kw_only=True):
    """The result of ADD."""

    cniVersion: str = ""
    interfaces: list[dict[str, Any]] = []
    ips: list[ResultIp] = []
    routes: list[ResultRoute] = []
    dns: Dns = field(default_factory=Dns)

    def encode(self) -> bytes:
        """JSON in the format of this CNI version."""
        found: dict[str, Any] = {"cniVersion": self.cniVersion}
        if self.interfaces:
            found["interfaces"] = self.interfaces
        if self.ips:
            old = not version.at_least(self.cniVersion, "1.0.0")
            for each in self.ips:
                each.version = str(ipaddress.ip_interface(each.address).version) if old else None
            found["ips"] = self.ips
        if self.routes:
            found["routes"] = self.routes
        found["dns"] = self.dns
        return msgspec.json.encode(found) + b"\n"


class _Incoming(Struct, kw_only=True):
    """A result of another plugin."""

    interfaces: list[dict[str, Any]] | None = None
    ips: list[ResultIp] | None = None
    routes: list[ResultRoute] | None = None
    dns: Dns | None = None


def result(given: dict[str, Any], cni_version: str, code: int, who: str) -> CniResult:
    """Parse another plugin's result. Raises CniError with `code` and the source `who`."""
    try:
        found = msgspec.convert(given, _Incoming)
        for each in found.ips or []:
            ipaddress.ip_interface(each.address)
            if each.gateway:
                ipaddress.ip_address(each.gateway)
        for route in found.routes or []:
            ipaddress.ip_network(route.dst, strict=False)
            if route.gw:
                ipaddress.ip_address(route.gw)
        for interface in found.interfaces or []:
            msgspec.convert(interface, ResultInterface)
    except (msgspec.ValidationError, ValueError) as error:
        raise CniError(code, f"{who} is not a CNI result: {error}") from None
    return CniResult(
        cniVersion=cni_version,
        interfaces=found.interfaces or [],
        ips=found.ips or [],
        routes=found.routes or [],
        dns=found.dns or Dns(),
    )

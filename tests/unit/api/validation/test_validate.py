"""Each validation rule: a violation, the path of the fault, and its message."""

import base64
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from api import names
from api.defaults import default_vmi
from api.errors import InvalidObject
from api.k8s.meta import ObjectMeta
from api.kinds.catalog import CATALOG
from api.kubevirt.configuration import (
    ArchConfiguration,
    ArchSpecificConfiguration,
    KubeVirtConfiguration,
    NetworkConfiguration,
)
from api.kubevirt.vm import VirtualMachine
from api.kubevirt.vmi import VirtualMachineInstance
from api.schema.codec import decode, to_dict
from api.validation.document import validate_document
from api.validation.validate import validate_vm, validate_vmi_spec, vmi_warnings, warnings
from tests.unit.api.documents import ROOTS, documents
from tests.unit.api.vm_manifests import DELETE, SPEC, decoded, machine

LOOSE = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
DISK, NIC, VOLUME, NETWORK = "domain.devices.disks.0", "domain.devices.interfaces.0", "volumes.0", "networks.0"
D, N, V = "domain.devices.disks[0]", "domain.devices.interfaces[0]", "volumes[0]"
C = f"{V}.cloudInitNoCloud"
CLOUD = f"{VOLUME}.cloudInitNoCloud"
KERNEL = "domain.firmware.kernelBoot.container"
NO_IMAGE = {f"{VOLUME}.containerDisk": DELETE}
TWO_PODS = {"networks.1": {"name": "b", "pod": {}}, "domain.devices.interfaces.1": {"name": "b", "masquerade": {}}}
MULTUS = {NIC: {"name": "default", "bridge": {}}, NETWORK: {"name": "default", "multus": {"networkName": "br1"}}}
SRIOV = MULTUS | {NIC: {"name": "default", "sriov": {}}}
TWO_NICS = {
    "networks.1": {"name": "b", "multus": {"networkName": "default/br1"}},
    "domain.devices.interfaces.1": {"name": "b", "bridge": {}},
}


def test_valid_vm_is_accepted() -> None:
    assert validate_document(machine()) == []
    assert warnings(decoded()) == []


# (changes, path of the only fault below spec.template.spec, part of its message)
REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"
PREFERRED = "preferredDuringSchedulingIgnoredDuringExecution"
NODE = f"affinity.nodeAffinity.{REQUIRED}.nodeSelectorTerms"
READ_ONLY_CLAIM = {"name": "root", "persistentVolumeClaim": {"claimName": "data", "readOnly": True}}
IGNORED = {"inferFromVolume": "root", "inferFromVolumeFailurePolicy": "Ignore"}


def _terms(term: dict[str, Any]) -> dict[str, Any]:
    return {"affinity": {"nodeAffinity": {REQUIRED: {"nodeSelectorTerms": [term]}}}}


def _node(requirements: list[dict[str, Any]]) -> dict[str, Any]:
    return _terms({"matchExpressions": requirements})


def _field(key: str, operator: str, values: list[str]) -> dict[str, Any]:
    return _terms({"matchFields": [{"key": key, "operator": operator, "values": values}]})


def _spread(*constraints: dict[str, Any]) -> dict[str, Any]:
    usual = {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway"}
    return {"topologySpreadConstraints": [usual | constraint for constraint in constraints]}


RULES: list[tuple[dict[str, Any], str, str]] = [
    # memory and CPU
    ({"domain.memory": DELETE}, "domain.memory.guest", "required: set memory.guest or"),
    ({"domain.memory.guest": "12Q"}, "domain.memory.guest", "'12Q' is not a quantity"),
    ({"domain.memory.guest": "128m"}, "domain.memory.guest", "a lower-case 'm' means 1/1000"),
    ({"domain.memory.guest": 0}, "domain.memory.guest", "too little guest memory"),
    ({"domain.memory.guest": "-1Gi"}, "domain.memory.guest", "must not be negative"),
    ({"domain.resources": {"limits": {"memory": "64Mi"}}}, "domain.memory.guest",
     "must not exceed resources.limits.memory"),
    ({"domain.resources": {"requests": {"memory": "2Gi"}, "limits": {"memory": "1Gi"}}},
     "domain.resources.requests.memory", "must not exceed resources.limits.memory"),
    ({"domain.resources": {"requests": {"cpu": 2}, "limits": {"cpu": "500m"}}},
     "domain.resources.requests.cpu", "must not exceed resources.limits.cpu"),
    ({"domain.resources": {"requests": {"cpu": "many"}}}, "domain.resources.requests.cpu", "is not a quantity"),
    ({"domain.cpu": {"sockets": 64, "cores": 8}}, "domain.cpu", "512 vCPUs exceed the maximum of 255"),
    ({"domain.cpu": {"model": "<x/>"}}, "domain.cpu.model", "is not a CPU model"),
    ({"domain.cpu": {"features": [{"name": "pcid"}, {"name": "pcid"}]}}, "domain.cpu.features[1].name", "twice"),
    ({"domain.cpu": {"features": [{"name": "pcid", "policy": "maybe"}]}}, "domain.cpu.features[0].policy",
     "'maybe' is not one of: force, require"),
    ({"domain.cpu": {"cores": -1}}, "domain.cpu.cores", "-1"),
    ({"domain.machine": {"type": "pc"}}, "domain.machine.type", "is not allowed: emulatedMachines"),
    ({"domain.machine": {"type": "pc-q35-99.9"}}, "domain.machine.type", "is not supported: use q35, pc-q35-2.4"),
    ({"domain.machine": {"type": "pc-q35-rhel5.1.0"}}, "domain.machine.type", "is not supported: use q35"),
    # firmware and clock
    ({"domain.firmware": {"uuid": "1234"}}, "domain.firmware.uuid", "is not a UUID"),
    ({"domain.firmware": {"serial": "a\u00e9"}}, "domain.firmware.serial", "printable ASCII"),
    ({KERNEL: {"image": "k:1"}}, f"{KERNEL}", "required: set kernelPath, initrdPath or both"),
    ({KERNEL: {"image": "k:1", "kernelPath": "boot/vmlinuz"}}, f"{KERNEL}.kernelPath", "absolute"),
    ({KERNEL: {"image": "k:1", "kernelPath": "/boot/../etc"}}, f"{KERNEL}.kernelPath", "'..'"),
    ({KERNEL: {"image": "k:1", "kernelPath": "/a//b"}}, f"{KERNEL}.kernelPath", "normalized path"),
    ({KERNEL: {"image": "k:1", "initrdPath": "/a/."}}, f"{KERNEL}.initrdPath", "normalized path"),
    ({KERNEL: {"image": "K 1", "kernelPath": "/k"}}, f"{KERNEL}.image", "is not an image reference"),
    ({"domain.firmware.kernelBoot.kernelArgs": "quiet"}, "domain.firmware.kernelBoot.kernelArgs", "requires a kernel"),
    ({"domain.clock": {"utc": {}, "timezone": "Europe/Vienna"}}, "domain.clock", "are mutually exclusive"),
    ({"domain.clock": {"timezone": "../x"}}, "domain.clock.timezone", "not a time zone"),
    ({"domain.clock": {"timezone": "Mars/Olympus"}}, "domain.clock.timezone", "not a time zone of the tz database"),
    ({"domain.cpu": {"model": "Haswel"}}, "domain.cpu.model", "not a CPU model known to libvirt; did you mean Haswell"),
    ({"domain.cpu": {"features": [{"name": "warp"}]}}, "domain.cpu.features[0].name", "not a CPU feature"),
    ({"domain.chassis": {"sku": "x" * 300}}, "domain.chassis.sku", "at most 256"),
    ({"domain.features": {"hyperv": {"vendorid": {"vendorid": "a,b"}}}}, "domain.features.hyperv.vendorid.vendorid",
     "must be 1 to 12"),
    # disks and volumes
    ({f"{DISK}.name": "other", VOLUME: {"name": "root", "emptyDisk": {"capacity": "1Gi"}}}, f"{D}.name",
     "disk 'other' has no volume with the same name"),
    ({"domain.devices.disks.1": {"name": "root"}}, "domain.devices.disks[1].name", "duplicate disk name 'root'"),
    ({"volumes.1": {"name": "root", "emptyDisk": {"capacity": "1Gi"}}}, "volumes[1].name", "duplicate volume name"),
    ({f"{DISK}.cdrom": {}}, D, "disk and cdrom are mutually exclusive"),
    ({f"{DISK}.bootOrder": 0}, f"{D}.bootOrder", "0"),
    ({f"{DISK}.bootOrder": 1, f"{NIC}.bootOrder": 1}, f"{N}.bootOrder", "already used by 'root'"),
    ({f"{DISK}.serial": "a b"}, f"{D}.serial", "must be"),
    ({f"{DISK}.disk": {"readonly": True}}, f"{D}.disk.bus", "on the default bus sata cannot be read-only"),
    ({f"{DISK}.disk": {"bus": "sata"}, VOLUME: READ_ONLY_CLAIM}, f"{D}.disk.bus", "use bus virtio or scsi, or cdrom"),
    ({"domain.devices.disks": [], VOLUME: READ_ONLY_CLAIM}, f"{V}.persistentVolumeClaim.readOnly",
     "on the default bus sata"),
    ({f"{DISK}.disk": {"bus": "ide"}}, f"{D}.disk.bus", "'ide' is not one of: virtio"),
    ({f"{DISK}.disk": {"pciAddress": "x"}}, f"{D}.disk.pciAddress", "not a PCI address"),
    ({f"{DISK}.disk": {"bus": "sata", "pciAddress": "0000:05:00.0"}}, f"{D}.disk.pciAddress",
     "only a virtio disk"),
    ({f"{DISK}.disk": DELETE, f"{DISK}.cdrom": {"bus": "virtio"}}, f"{D}.cdrom.bus", "sata or scsi"),
    ({f"{DISK}.disk": DELETE, f"{DISK}.cdrom": {"readonly": False}}, f"{D}.cdrom.readonly",
     "must be read-only"),
    ({f"{DISK}.io": "native", f"{DISK}.cache": "writeback"}, f"{D}.io", "requires cache none"),
    ({f"{VOLUME}.emptyDisk": {"capacity": "1Gi"}}, V,
     "only one source is allowed per volume, not containerDisk and emptyDisk"),
    (NO_IMAGE, V, "volume 'root' has no source"),
    ({f"{VOLUME}.containerDisk.image": ""}, f"{V}.containerDisk.image", "is not an image reference"),
    ({f"{VOLUME}.containerDisk.image": "a; rm -rf /"}, f"{V}.containerDisk.image", "is not an image reference"),
    ({f"{VOLUME}.containerDisk.path": "disk/x.img"}, f"{V}.containerDisk.path", "absolute"),
    ({f"{VOLUME}.containerDisk.path": "/disk/../../etc/shadow"}, f"{V}.containerDisk.path", "'..'"),
    ({f"{VOLUME}.containerDisk.path": "/disk/"}, f"{V}.containerDisk.path", "normalized path"),
    ({f"{VOLUME}.containerDisk.path": "/disk/a\x00b"}, f"{V}.containerDisk.path", "control character U+0000"),
    ({f"{VOLUME}.containerDisk.imagePullSecret": "A B"}, f"{V}.containerDisk.imagePullSecret",
     "not a valid object name"),
    ({VOLUME: {"name": "root", "emptyDisk": {"capacity": "1x"}}}, f"{V}.emptyDisk.capacity", "is not a quantity"),
    ({VOLUME: {"name": "root", "emptyDisk": {"capacity": 1}}}, f"{V}.emptyDisk.capacity", "one sector"),
    ({VOLUME: {"name": "root", "emptyDisk": {}}}, f"{V}.emptyDisk.capacity", "required"),
    ({VOLUME: {"name": "root", "persistentVolumeClaim": {"claimName": "../x"}}},
     f"{V}.persistentVolumeClaim.claimName", "not a valid object name"),
    ({"volumes.1": {"name": "b", "persistentVolumeClaim": {"claimName": "x"}},
      "volumes.2": {"name": "c", "persistentVolumeClaim": {"claimName": "x"}}},
     "volumes[2].persistentVolumeClaim.claimName", "already used by volume 'b'"),
    ({VOLUME: {"name": "root", "configMap": {}}}, f"{V}.configMap.name", "required"),
    ({VOLUME: {"name": "root", "secret": {"secretName": "x", "volumeLabel": "a/b"}}}, f"{V}.secret.volumeLabel",
     "must be"),
    # cloud-init
    ({**NO_IMAGE, CLOUD: {}}, C, "required: set userData,"),
    ({**NO_IMAGE, CLOUD: {"userData": "a", "secretRef": {"name": "b"}}}, C,
     "userData, userDataBase64 and secretRef are mutually exclusive"),
    ({**NO_IMAGE, CLOUD: {"userDataBase64": "%%%"}}, f"{C}.userDataBase64", "must be base64"),
    ({**NO_IMAGE, CLOUD: {"userData": "x" * 65537}}, f"{C}.userData", "put larger data into a Secret"),
    ({**NO_IMAGE, CLOUD: {"networkDataBase64": base64.b64encode(b"x" * 65537).decode(), "userData": "a"}},
     f"{C}.networkDataBase64", "at most 65536 bytes"),
    ({**NO_IMAGE, CLOUD: {"secretRef": {}}}, f"{C}.secretRef.name", "required"),
    ({**NO_IMAGE, CLOUD: {"userData": "a\x00"}}, f"{C}.userData", "U+0000 at position 1"),
    ({**NO_IMAGE, CLOUD: {"userData": "a"}, "volumes.1": {"name": "b", "cloudInitConfigDrive": {"userData": "b"}}},
     "volumes", "only one cloud-init volume"),
    # networks
    ({"networks": DELETE}, f"{N}.name", "interface 'default' has no network"),
    ({"domain.devices.interfaces": DELETE}, "networks[0].name", "network 'default' has no interface"),
    ({"domain.devices.interfaces.1": {"name": "default", "masquerade": {}}}, "domain.devices.interfaces[1].name",
     "duplicate interface name 'default'"),
    (TWO_PODS, "networks", "only one network can have the pod source"),
    ({f"{NETWORK}.pod": DELETE}, "networks[0]", "has no source: set pod or multus"),
    ({f"{NETWORK}.pod.vmNetworkCIDR": "10.0.0.0/31"}, "networks[0].pod.vmNetworkCIDR", "is too small"),
    ({f"{NETWORK}.pod.vmNetworkCIDR": "fd10::/120"}, "networks[0].pod.vmNetworkCIDR", "not an IPv4 network"),
    ({f"{NETWORK}.pod.vmIPv6NetworkCIDR": "10.0.0.0/24"}, "networks[0].pod.vmIPv6NetworkCIDR", "not an IPv6 network"),
    ({f"{NIC}.macAddress": "02:00:00:00:00"}, f"{N}.macAddress", "not a MAC address"),
    ({f"{NIC}.macAddress": "01:00:5e:00:00:01"}, f"{N}.macAddress", "multicast"),
    ({f"{NIC}.macAddress": "00-00-00-00-00-00"}, f"{N}.macAddress", "all zeros"),
    ({f"{NIC}.macAddress": "02-00-00-00-00-01"}, f"{N}.macAddress", "MAC address of the gateway"),
    ({f"{NIC}.pciAddress": "1:2"}, f"{N}.pciAddress", "not a PCI address"),
    ({f"{NIC}.model": "fast"}, f"{N}.model", "not one of"),
    ({f"{NIC}.ports": [{"port": 70000}]}, f"{N}.ports[0].port", "70000"),
    ({f"{NIC}.ports": [{"port": 0}]}, f"{N}.ports[0].port", "0"),
    ({f"{NIC}.ports": [{"port": 80}, {"port": 80, "protocol": "TCP"}]}, f"{N}.ports[1].port",
     "port 80/TCP is listed twice"),
    ({f"{NIC}.dhcpOptions": {"ntpServers": ["ntp"]}}, f"{N}.dhcpOptions.ntpServers[0]", "not an IP"),
    ({f"{NIC}.dhcpOptions": {"privateOptions": [{"option": 3, "value": "x"}]}},
     f"{N}.dhcpOptions.privateOptions[0].option", "3"),
    ({f"{NIC}.dhcpOptions": {"ntpServers": ["fd10::1"]}}, f"{N}.dhcpOptions.ntpServers[0]", "not an IPv4 address"),
    ({f"{NIC}.dhcpOptions": {"privateOptions": [{"option": 240, "value": "x"}, {"option": 240, "value": "y"}]}},
     f"{N}.dhcpOptions.privateOptions[1].option", "option 240 is set twice"),
    ({f"{NIC}.dhcpOptions": {"tftpServerName": "a b"}}, f"{N}.dhcpOptions.tftpServerName", "must be 1 to 253"),
    ({f"{NIC}.dhcpOptions": {"bootFileName": "x" * 128}}, f"{N}.dhcpOptions.bootFileName", "at most 127"),
    ({f"{NIC}.portRanges": [{"start": 90, "end": 80, "protocol": "TCP"}]}, f"{N}.portRanges[0].end",
     "80 must not be less than start (90)"),
    ({f"{NIC}.portRanges": [{"start": 90, "end": 99, "protocol": "TCP"}], f"{NIC}.ports": [{"port": 95}]},
     f"{N}.ports[0].port", "port 95/TCP is listed twice"),
    ({f"{NIC}.portRanges": [{"start": 1, "end": 99, "protocol": "UDP"}, {"start": 5, "end": 7, "protocol": "UDP"}]},
     f"{N}.portRanges[1]", "port 5/UDP is listed twice"),
    ({f"{NIC}.portRanges": [{"start": 1, "end": 2, "protocol": "SCTP"}]}, f"{N}.portRanges[0].protocol", "one of"),
    ({f"{NIC}.ports": [{"port": n} for n in range(1, 1026)]}, f"{N}.ports", "at most 1024 entries: use portRanges"),
    ({NIC: {"name": "default", "bridge": {}, "ports": [{"port": 1}]}}, f"{N}.ports", "requires masquerade"),
    ({f"{NIC}.acpiIndex": 0}, f"{N}.acpiIndex", "between 1 and 16383"),
    ({f"{NIC}.bridge": {}}, N, "masquerade and bridge are mutually exclusive"),
    ({NIC: {"name": "default", "sriov": {}}}, f"{N}.sriov", "requires a multus network"),
    ({f"{NIC}.state": "absent"}, f"{N}.state", "absent requires a bridge on a multus network"),
    ({f"{NIC}.state": "away"}, f"{N}.state", "one of: up, down, absent"),
    ({f"{NIC}.pciAddress": "0000:0a:00.0", f"{DISK}.disk": {"pciAddress": "0000:0A:00.0"}}, f"{N}.pciAddress",
     "already used by 'root'"),
    ({f"{NETWORK}.pod.vmNetworkCIDR": "10.0.0.0/7"}, "networks[0].pod.vmNetworkCIDR", "is too large"),
    ({f"{NETWORK}.pod.vmNetworkCIDR": "127.1.0.0/24"}, "networks[0].pod.vmNetworkCIDR",
     "not a network with unicast addresses"),
    ({f"{NETWORK}.pod.vmIPv6NetworkCIDR": "ff00::/64"}, "networks[0].pod.vmIPv6NetworkCIDR",
     "not a network with unicast addresses"),
    (MULTUS | {f"{NIC}.masquerade": {}, f"{NIC}.bridge": DELETE}, f"{N}.masquerade", "requires the pod network"),
    (MULTUS | {"networks.0.multus.networkName": "Br1"}, "networks[0].multus.networkName", "[namespace/]name"),
    (MULTUS | {"networks.0.multus.networkName": "a/b/c"}, "networks[0].multus.networkName", "[namespace/]name"),
    (MULTUS | {"networks.0.multus.networkName": ""}, "networks[0].multus.networkName", "not a valid object name"),
    (MULTUS | {"networks.0.multus.networkName": "/br1"}, "networks[0].multus.networkName", "[namespace/]name"),
    (MULTUS | {"networks.0.multus": {}}, "networks[0].multus.networkName", "required"),
    (MULTUS | {"networks.0.multus.networkName": "theirs/br1"}, "networks[0].multus.networkName",
     "a VM can join networks of its own namespace (default) and of default only"),
    (MULTUS | {"networks.0.pod": {}}, "networks[0]", "pod and multus are mutually exclusive"),
    (SRIOV | {f"{NIC}.state": "down"}, f"{N}.state", "down is not supported for an sriov interface"),
    (SRIOV | {f"{NIC}.state": "absent"}, f"{N}.state", "absent requires a bridge"),
    (SRIOV | {f"{NIC}.dhcpOptions": {"bootFileName": "x"}}, f"{N}.dhcpOptions", "hyperlet does not serve DHCP"),
    (SRIOV | {f"{NIC}.portRanges": [{"start": 1, "end": 2, "protocol": "TCP"}]}, f"{N}.portRanges",
     "requires masquerade"),
    (TWO_NICS | {f"{NIC}.macAddress": "02:00:00:00:00:0a", "domain.devices.interfaces.1.macAddress":
      "02-00-00-00-00-0A"}, "domain.devices.interfaces[1].macAddress", "used twice"),
    (TWO_NICS | {f"{NIC}.acpiIndex": 3, "domain.devices.interfaces.1.acpiIndex": 3},
     "domain.devices.interfaces[1].acpiIndex", "3 is used twice"),
    (TWO_NICS | {f"{NIC}.bootOrder": 3, "domain.devices.interfaces.1.bootOrder": 3},
     "domain.devices.interfaces[1].bootOrder", "already used by 'default'"),
    # the rest of the spec
    ({"hostname": "Bad_Host"}, "hostname", "lower case letters"),
    ({"subdomain": "a.b"}, "subdomain", "lower case letters"),
    ({"nodeSelector": {"a b": "c"}}, "nodeSelector", "not a label or annotation key"),
    ({"nodeSelector": {"a": "c d"}}, "nodeSelector.a", "not a label value"),
    ({"dnsPolicy": "None"}, "dnsConfig.nameservers", "at least one"),
    ({"dnsConfig": {"nameservers": ["dns.example"]}}, "dnsConfig.nameservers[0]", "not an IP address"),
    ({"priorityClassName": "UPPER"}, "priorityClassName", "not a valid object name"),
    ({"terminationGracePeriodSeconds": -1}, "terminationGracePeriodSeconds", "-1"),
    ({"readinessProbe": {}}, "readinessProbe", "exactly one of"),
    ({"readinessProbe": {"tcpSocket": {"port": 0}}}, "readinessProbe.tcpSocket.port", "neither a port number"),
    ({"readinessProbe": {"httpGet": {"port": "http"}}}, "readinessProbe.httpGet.port", "neither a port number"),
    ({"startStrategy": "Paused", "livenessProbe": {"tcpSocket": {"port": 1}}}, "startStrategy", "starts paused"),
    ({"domain.devices.watchdog": {"name": "w.1"}}, "domain.devices.watchdog.name", "letters, digits, '-' or '_'"),
    ({"domain.devices.inputs": [{"name": "t", "type": "mouse"}]}, "domain.devices.inputs[0].type", "one of: tablet"),
    ({"dnsConfig": {"options": [{"name": "a\nb"}]}}, "dnsConfig.options[0].name", "control character U+000A"),
    ({"livenessProbe": {"tcpSocket": {"port": 80}, "successThreshold": 3}}, "livenessProbe.successThreshold",
     "must be 1"),
    ({f"{NIC}.ports": [{"port": 80, "name": "a-name-too-long0"}]}, f"{N}.ports[0].name", "1 to 15 lower case"),
    ({f"{NIC}.ports": [{"port": 80, "name": "8080"}]}, f"{N}.ports[0].name", "at least one letter"),
    ({f"{NIC}.ports": [{"port": 80, "name": "a--b"}]}, f"{N}.ports[0].name", "single '-'"),
    ({**NO_IMAGE, f"{VOLUME}.cloudInitConfigDrive": {"networkData": "version: 2\nethernets: {}"}},
     f"{V}.cloudInitConfigDrive.networkData", "requires OpenStack's network_data.json"),
    ({**NO_IMAGE, f"{VOLUME}.cloudInitConfigDrive": {"networkDataBase64": "W10="}},
     f"{V}.cloudInitConfigDrive.networkDataBase64", "must be a JSON object"),
    # where it may run
    ({"tolerations": [{"key": "a", "operator": "Exists", "value": "b"}]}, "tolerations[0].value", "must be empty"),
    ({"tolerations": [{"key": "a b"}]}, "tolerations[0].key", "not a label or annotation key"),
    ({"tolerations": [{"value": "b"}]}, "tolerations[0].operator", "must be Exists"),
    ({"tolerations": [{"key": "a", "value": "b c"}]}, "tolerations[0].value", "not a label value"),
    ({"tolerations": [{"key": "a", "operator": "Gt", "value": "x"}]}, "tolerations[0].value", "an integer"),
    ({"tolerations": [{"key": "a", "tolerationSeconds": 5, "effect": "NoSchedule"}]}, "tolerations[0].effect",
     "must be NoExecute"),
    (_node([{"key": "a", "operator": "In"}]), f"{NODE}[0].matchExpressions[0].values", "at least one value"),
    (_node([{"key": "a", "operator": "Exists", "values": ["b"]}]), f"{NODE}[0].matchExpressions[0].values",
     "must be empty"),
    (_node([{"key": "a", "operator": "Gt", "values": []}]), f"{NODE}[0].matchExpressions[0].values", "exactly one"),
    (_node([{"key": "a b", "operator": "Exists"}]), f"{NODE}[0].matchExpressions[0].key",
     "not a label or annotation key"),
    (_node([{"key": "a", "operator": "In", "values": ["b c"]}]), f"{NODE}[0].matchExpressions[0].values[0]",
     "not a label value"),
    ({"affinity": {"nodeAffinity": {REQUIRED: {"nodeSelectorTerms": []}}}}, NODE, "at least one term"),
    (_field("metadata.uid", "In", ["a"]), f"{NODE}[0].matchFields[0].key", "must be metadata.name"),
    (_field("metadata.name", "Exists", []), f"{NODE}[0].matchFields[0].operator", "In or NotIn"),
    (_field("metadata.name", "In", ["a", "b"]), f"{NODE}[0].matchFields[0].values", "exactly one"),
    ({"affinity": {"podAffinity": {REQUIRED: [{"topologyKey": ""}]}}},
     f"affinity.podAffinity.{REQUIRED}[0].topologyKey", "must not be empty"),
    ({"affinity": {"podAntiAffinity": {PREFERRED: [{"weight": 1, "podAffinityTerm": {"topologyKey": "zone",
      "labelSelector": {"matchExpressions": [{"key": "a", "operator": "NotIn"}]}}}]}}},
     f"affinity.podAntiAffinity.{PREFERRED}[0].podAffinityTerm.labelSelector.matchExpressions[0].values",
     "at least one value"),
    ({"affinity": {"podAffinity": {REQUIRED: [{"topologyKey": "zone", "namespaces": ["A"]}]}}},
     f"affinity.podAffinity.{REQUIRED}[0].namespaces[0]", "lower case"),
    ({"affinity": {"podAffinity": {REQUIRED: [{"topologyKey": "zone", "matchLabelKeys": ["a"]}]}}},
     f"affinity.podAffinity.{REQUIRED}[0].matchLabelKeys", "requires labelSelector"),
    (_spread({"minDomains": 2}), "topologySpreadConstraints[0].minDomains",
     "requires whenUnsatisfiable: DoNotSchedule"),
    (_spread({"labelSelector": {"matchLabels": {"a": "b c"}}}),
     "topologySpreadConstraints[0].labelSelector.matchLabels.a", "not a label value"),
    (_spread({}, {}), "topologySpreadConstraints[1].topologyKey", "is already used by another constraint"),
    # annotations with a meaning in KubeVirt
    ({"/spec.template.metadata.annotations": {"hooks.kubevirt.io/hookSidecars": "[]"}},
     "/spec.template.metadata.annotations.hooks.kubevirt.io/hookSidecars", "hook sidecars are not implemented"),
    ({"/spec.template.metadata.annotations": {"kubevirt.io/ignitiondata": "{}"}},
     "/spec.template.metadata.annotations.kubevirt.io/ignitiondata", "cloudInitConfigDrive"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "path", "words"), RULES, ids=[f"{path}: {words}" for _, path, words in RULES])
def test_rule_reports_fault_at_path(changes: dict[str, Any], path: str, words: str) -> None:
    faults = validate_document(machine(changes))
    known = [(fault.path, fault.message) for fault in faults]
    where = path[1:] if path.startswith("/") else f"{SPEC}.{path}"
    assert [(fault_path, words in message) for fault_path, message in known] == [(where, True)], known


@pytest.mark.parametrize(
    ("changes", "path", "words"),
    [
        ({"/spec.running": True}, "spec.runStrategy", "are mutually exclusive"),
        ({"/spec.runStrategy": "Sometimes"}, "spec.runStrategy", "'Sometimes' is not one of: Always, Halted"),
        ({"/spec.template": DELETE}, "spec.template", "required"),
        ({"/metadata.name": "x" * 64}, "metadata.name", "at most 63"),
        ({"/spec.template.metadata.labels": {"app": "<b>"}}, "spec.template.metadata.labels.app", "not a label value"),
        (
            {"/spec.template.metadata.labels": {"$(id)": "x"}},
            "spec.template.metadata.labels",
            "not a label or annotation key",
        ),
        ({"/spec.template.metadata.annotations": {"a": "x" * 300_000}}, "spec.template.metadata.annotations", "262144"),
        (
            {"/spec.template.metadata.annotations": {"a b": ""}},
            "spec.template.metadata.annotations",
            "not a label or annotation key",
        ),
        ({"/spec.extra": 1}, "spec.extra", "unknown field 'extra'"),
        ({"domain.devices.diks": []}, f"{SPEC}.domain.devices.diks", "did you mean disks?"),
        ({"/kind": "VirtualMachin"}, "kind", "'VirtualMachin' is not one of VirtualMachine,"),
        ({"/apiVersion": "v1"}, "apiVersion", "'v1' is not one of: kubevirt.io/v1"),
    ],
)
def test_object_rule_reports_fault_at_path(changes: dict[str, Any], path: str, words: str) -> None:
    faults = validate_document(machine(changes))
    assert [(fault.path, words in fault.message) for fault in faults] == [(path, True)], faults


@pytest.mark.parametrize("name", ["net.1", "é", "", "x" * 64, "a b"])
def test_invalid_network_name_is_refused(name: str) -> None:
    faults = validate_document(machine({f"{NIC}.name": name, f"{NETWORK}.name": name}))
    assert {fault.path.removeprefix(f"{SPEC}.") for fault in faults} == {f"{N}.name", "networks[0].name"}
    assert all("must be 1 to 63 letters, digits, '-' or '_'" in fault.message for fault in faults)


def test_duplicate_network_name_is_refused() -> None:
    faults = validate_document(machine({"networks.1": {"name": "default", "pod": {}}}))
    assert (f"{SPEC}.networks[1].name", "duplicate network name 'default'") in [fault[::2] for fault in faults]


def test_every_fault_is_reported_at_once() -> None:
    faults = validate_document(
        machine(
            {
                "/spec.running": True,
                "domain.memory.guest": "12Q",
                "domain.devices.foo": 1,
                "domain.devices.gpus": [{"name": "a", "deviceName": "b"}],
                f"{DISK}.bootOrder": "first",
            }
        )
    )
    assert sorted(fault.path.removeprefix(f"{SPEC}.domain.") for fault in faults) == [
        "devices.disks[0].bootOrder", "devices.foo", "devices.gpus", "memory.guest", "spec.runStrategy",
    ]  # fmt: skip
    assert {fault.reason for fault in faults} == {
        names.FAULT_INVALID, names.FAULT_UNKNOWN, names.FAULT_NOT_SUPPORTED, names.FAULT_TYPE,
    }  # fmt: skip


@pytest.mark.parametrize(
    "changes",
    [
        {"volumes.1": {"name": "data", "persistentVolumeClaim": {"claimName": "data"}}},
        {"domain.memory": DELETE, "domain.resources": {"requests": {"memory": "1Gi"}}},
        {"domain.memory": DELETE, "domain.resources": {"limits": {"memory": "1Gi"}}},
        {"domain.devices.interfaces": DELETE, "networks": DELETE},
        {f"{VOLUME}.containerDisk.image": "host.example:5000/a/b:1@sha256:" + "0" * 64},
        {f"{VOLUME}.containerDisk.path": "/disk/..hidden.img"},
        {KERNEL: {"image": "k", "kernelPath": "/boot/vmlinuz", "initrdPath": "/boot/initrd"},
         "domain.firmware.kernelBoot.kernelArgs": "console=ttyS0 quiet"},
        {"domain.devices.gpus": [], "domain.devices.autoattachVSOCK": False},
        {"domain.cpu": {"dedicatedCpuPlacement": False}},
        {**NO_IMAGE, CLOUD: {"userData": "#cloud-config\n\tx: 'é <&>'\n"}},
        {**NO_IMAGE, CLOUD: {"networkData": "version: 2"}},
        {f"{NIC}.ports": [{"port": 53, "protocol": "TCP"}, {"port": 53, "protocol": "UDP"}]},
        {"evictionStrategy": "LiveMigrate"},
        {"/spec.template.metadata.annotations": {"example.com/notes": "<a>\n$(b)"}},
        {"domain.machine": {"type": "pc-q35-9.2"}},
        {"readinessProbe": {"httpGet": {"port": 80, "path": "/"}, "periodSeconds": 5}},
        {"livenessProbe": {"tcpSocket": {"port": "web"}, "successThreshold": 1},
         f"{NIC}.ports": [{"port": 80, "name": "web"}]},
        *({f"{NIC}.name": name, f"{NETWORK}.name": name} for name in ("my_net", "Net-1", "-", "_x")),
        {"domain.devices.inputs": [{"name": "My_Tablet", "type": "tablet"}]},
        {"domain.devices.watchdog": {"name": "my_dog"}},
        {"domain.devices.logSerialConsole": True},
        {f"{DISK}.disk": {"bus": "scsi", "readonly": True}},
        {DISK: {"name": "root", "cdrom": {}}, VOLUME: READ_ONLY_CLAIM},
        {f"{DISK}.disk": {"bus": "virtio"}, VOLUME: READ_ONLY_CLAIM},
        {**NO_IMAGE, f"{VOLUME}.cloudInitConfigDrive": {"networkData": '{"links": []}'}},
        {"domain.machine": {"type": "pc-q35-rhel9.4.0"}},
        {"domain.machine": {"type": "pc-q35-noble"}},
        {"domain.clock": {"timezone": "Europe/Vienna"}},
        {"domain.cpu": {"model": "Skylake-Client-IBRS", "features": [{"name": "pcid"}, {"name": "vmx"}]}},
        {"domain.cpu": {"model": "host-passthrough"}},
        {"tolerations": [{"operator": "Exists"}, {"key": "a", "operator": "Lt", "value": "-5"},
                         {"key": "a", "effect": "NoExecute", "tolerationSeconds": 5}]},
        _node([{"key": "a", "operator": "In", "values": ["b"]}, {"key": "c", "operator": "Lt", "values": ["5"]}]),
        _field("metadata.name", "In", ["node1"]),
        _spread({"whenUnsatisfiable": "DoNotSchedule", "minDomains": 2}, {"topologyKey": "kubernetes.io/hostname"}),
        {"/spec.template.metadata.annotations": {"kubevirt.io/memfd": "false", "kubevirt.io/nonroot": "",
         "vm.kubevirt.io/os": "linux", "kubectl.kubernetes.io/default-container": "istio-proxy"}},
        {"/spec.instancetype": IGNORED, "/spec.preference": IGNORED},
        MULTUS,
        MULTUS | {f"{NIC}.state": "absent"},
        MULTUS | {NIC: {"name": "default", "state": "absent"}},
        MULTUS | {"networks.0.multus": {"networkName": "default/br1.lan", "default": False}},
        SRIOV | {f"{NIC}.macAddress": "02:00:00:00:00:0a", f"{NIC}.state": "up"},
        TWO_NICS,
        {NIC: {"name": "default", "bridge": {}}},
        {f"{NIC}.state": "down", f"{NIC}.acpiIndex": 16383, "domain.devices.networkInterfaceMultiqueue": True},
        {f"{NIC}.portRanges": [{"start": 8000, "end": 8000, "protocol": "TCP"}], f"{NIC}.ports": [{"port": 8001}]},
        *({f"{NIC}.model": model} for model in ("virtio", "e1000", "e1000e", "ne2k_pci", "pcnet", "rtl8139")),
    ],
)  # fmt: skip
def test_valid_variants_are_accepted(changes: dict[str, Any]) -> None:
    assert validate_document(machine(changes)) == []


def test_network_of_another_namespace_is_refused() -> None:
    """Otherwise knowing the name would be enough to join another tenant's network."""
    changes = MULTUS | {"networks.0.multus.networkName": "theirs/br1"}
    assert validate_document(machine(changes | {"/metadata": {"name": "small", "namespace": "theirs"}})) == []
    assert validate_document(machine(changes | {"/metadata": {"name": "small"}})) == []
    (fault,) = validate_document(machine(changes | {"/metadata": {"name": "small", "namespace": "mine"}}))
    assert fault.reason == names.FAULT_FORBIDDEN and "(mine)" in fault.message
    spec = decoded(changes).spec.template.spec
    assert spec is not None
    assert [fault.path for fault in validate_vmi_spec(spec, namespace="mine")] == [
        "spec.networks[0].multus.networkName"
    ]


def test_configuration_can_forbid_bridge_on_pod_network() -> None:
    def faults(nic: dict[str, Any], permit: bool | None, default: str | None = None) -> list[str]:
        network = NetworkConfiguration(permitBridgeInterfaceOnPodNetwork=permit, defaultNetworkInterface=default)
        found = validate_document(machine({NIC: nic}), KubeVirtConfiguration(network=network))
        return [fault.path.removeprefix(f"{SPEC}.") for fault in found]

    bridge, bare = {"name": "default", "bridge": {}}, {"name": "default"}
    assert faults(bridge, None) == faults(bridge, True) == faults(bare, False) == []
    assert faults(bridge, False) == faults(bare, False, "bridge") == [f"{N}.bridge"]
    assert validate_document(machine(MULTUS), KubeVirtConfiguration(network=NetworkConfiguration(
        permitBridgeInterfaceOnPodNetwork=False))) == []  # fmt: skip


def test_undecodable_document_reports_further_faults_without_false_ones() -> None:
    faults = validate_document(
        machine(
            {
                "domain.memory": DELETE,
                "domain.resources": {"requests": {"memory": "lots"}},
                "domain.devices.disks.1": {"name": "data"},
                "domain.devices.interfaces.0": {"name": "default", "masquerade": {}, "bootOrder": "x"},
                "hostname": 5,
            }
        )
    )
    assert sorted(fault.path.removeprefix(f"{SPEC}.") for fault in faults) == [
        "domain.devices.disks[1].name", "domain.devices.interfaces[0].bootOrder", "domain.resources.requests.memory",
        "hostname",
    ]  # fmt: skip


def test_warnings() -> None:
    vm = decoded({"/spec.runStrategy": DELETE, f"{DISK}.serial": "x" * 21, "evictionStrategy": "LiveMigrate",
                  "domain.memory.guest": "1GiB"})  # fmt: skip
    text = "\n".join(warnings(vm))
    for words in ("stays halted", "first 20 characters", "blocks until the VM is stopped", "1GiB is read as 1Gi"):
        assert words in text
    assert "deprecated" in "\n".join(warnings(decoded({"/spec.runStrategy": DELETE, "/spec.running": True})))


@pytest.mark.parametrize(
    ("strategy", "words"),
    [(None, ""), ("None", ""), ("LiveMigrate", "blocks until the VM is stopped"),
     ("LiveMigrateIfPossible", "shuts the guest down"), ("External", "status.evacuationNodeName")],
)  # fmt: skip
def test_eviction_strategy_warnings_for_vm_and_vmi(strategy: Any, words: str) -> None:
    own, default = KubeVirtConfiguration(), KubeVirtConfiguration(evictionStrategy=strategy)
    for config, changes in ((own, {"evictionStrategy": strategy} if strategy else {}), (default, {})):
        vm = decoded(changes)
        kind = {"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance"}
        vmi = msgspec.convert({**kind, "metadata": {}, "spec": to_dict(vm.spec.template.spec)}, VirtualMachineInstance)
        for told in (warnings(vm, config), vmi_warnings(vmi, config)):
            assert len(told) == bool(words) and words in "".join(told)
    assert warnings(decoded({"evictionStrategy": "None"}), KubeVirtConfiguration(evictionStrategy="LiveMigrate")) == []


def test_ignored_annotation_and_replaced_machine_type_are_warned() -> None:
    vm = decoded({"domain.machine": {"type": "pc-q35-rhel9.4.0"},
                  "/spec.template.metadata.annotations": {"kubevirt.io/pci-topology-version": "v3"}})  # fmt: skip
    assert warnings(vm) == [
        "spec.template.metadata.annotations.kubevirt.io/pci-topology-version: no effect: hyperlet assigns PCI "
        "addresses itself",
        "spec.template.spec.domain.machine.type: pc-q35-rhel9.4.0 is not available: the VM uses pc-q35-8.2, the "
        "closest upstream type",
    ]


def test_vmi_annotation_is_warned() -> None:
    spec = decoded().spec.template.spec
    assert spec is not None
    metadata = ObjectMeta(name="small", annotations={"kubevirt.io/pci-topology-version": "v3"})
    vmi = VirtualMachineInstance(
        apiVersion="kubevirt.io/v1", kind="VirtualMachineInstance", metadata=metadata, spec=spec
    )
    assert [text.partition(":")[0] for text in vmi_warnings(vmi)] == [
        "metadata.annotations.kubevirt.io/pci-topology-version"
    ]


def test_configuration_restricts_machine_types() -> None:
    def faults(written: str, **settings: Any) -> list[str]:
        found = validate_document(machine({"domain.machine": {"type": written}}), KubeVirtConfiguration(**settings))
        return [fault.message for fault in found]

    amd64 = ArchConfiguration(amd64=ArchSpecificConfiguration(emulatedMachines=["pc-q35-9.*"]))
    assert faults("pc-q35-9.2", emulatedMachines=["pc-q35-9.*"]) == []
    assert faults("pc-q35-9.2", architectureConfiguration=amd64) == []
    assert faults("q35", architectureConfiguration=amd64) == [
        "'q35' is not allowed: emulatedMachines of the KubeVirt object allows pc-q35-9.*"
    ]
    (message,) = faults("pc-q35-rhel9.4.0", emulatedMachines=["q35"])
    assert "is not allowed: emulatedMachines" in message


def test_a_migration_is_refused() -> None:
    migration = {"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstanceMigration", "metadata": {"name": "m"},
                 "spec": {"vmiName": "small"}}  # fmt: skip
    assert [fault.message for fault in validate_document(migration)] == [
        "live migration is not supported by this version of hyperlet"
    ]


@LOOSE
@given(st.one_of(*(documents(kind) for kind in ROOTS)))
def test_any_valid_document_is_validated_and_defaulted(document: dict[str, Any]) -> None:
    validate_document(document)
    if document["kind"] == "VirtualMachineInstance":
        vmi = decode(VirtualMachineInstance, document)
        filled = default_vmi(vmi)
        assert default_vmi(filled) == filled
        assert to_dict(vmi) == document


JUNK = st.sampled_from([None, True, -1, 2**70, "", "\x00", "é", [], [None], {}, {"name": 1}, [[]], 1.5])


@LOOSE
@given(documents("VirtualMachine"), JUNK, st.randoms(use_true_random=False))
def test_junk_values_are_reported_as_faults(document: dict[str, Any], junk: Any, random: Any) -> None:
    node: Any = document
    while True:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        key = random.choice(keys)
        if isinstance(node[key], (dict, list)) and node[key] and random.random() < 0.8:
            node = node[key]
            continue
        node[key] = junk
        break
    faults = validate_document(document)
    kind = CATALOG.get("kubevirt.io", str(document.get("kind")))
    cls = kind.struct if kind is not None else None
    if cls is not None:
        try:
            decode(cls, document)
        except InvalidObject as error:
            assert error.faults
            assert faults


def test_decoded_and_raw_validation_agree() -> None:
    document = machine({"domain.memory": DELETE, "domain.devices.tpm": {}})
    raw = msgspec.json.encode(document)
    assert validate_vm(decode(VirtualMachine, raw)) == validate_document(document)

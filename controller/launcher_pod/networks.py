"""Secondary networks of a VMI in its launcher pod: networks annotation, device resources, environment. Pure.

The annotation is defined by the Network Plumbing Working Group (api.network_attachments); Multus or the handler
attaches the networks that it lists. Resources and environment variables follow KubeVirt's convention for devices.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping

from api.k8s.objects import Pod
from api.kubevirt.networks import Interface, Network, pod_interface
from api.kubevirt.vmi import VirtualMachineInstance, VirtualMachineInstanceSpec
from api.network_attachments import ANNOTATION_NETWORKS, ANNOTATION_RESOURCE, SHARED_NAMESPACE
from api.validation import syntax
from controller.actions import Patch
from controller.cache.definitions import NetworkMetadata

Definitions = Mapping[str, NetworkMetadata]
"""By `namespace/name`."""

ENVIRONMENT_PREFIX = "KUBEVIRT_RESOURCE_NAME_"
_RESERVED_RESOURCES = "devices.kubevirt.io/"
_RESOURCE = re.compile(
    r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)+/[A-Za-z0-9][-A-Za-z0-9_.]{0,62}"
)


def reference(network: Network, namespace: str) -> str | None:
    """`namespace/name` of the NetworkAttachmentDefinition that a network references; `namespace` is the VMI's."""
    if network.multus is None:
        return None
    name = network.multus.networkName
    return name if "/" in name else f"{namespace}/{name}"


def references(spec: VirtualMachineInstanceSpec, namespace: str) -> list[str]:
    """The NetworkAttachmentDefinitions that a VMI references, without duplicates."""
    return list(dict.fromkeys(found for network in spec.networks or () if (found := reference(network, namespace))))


def _joined(vmi: VirtualMachineInstance) -> Iterator[tuple[int, Network, Interface, str]]:
    """Index, network, interface and definition of every secondary network, including absent ones.

    Definitions in other namespaces, which validation refuses, are skipped here again: the VMI may have changed since
    its pod was created, and its author may lack the permission to write pods.
    """
    interfaces = {interface.name: interface for interface in vmi.spec.domain.devices.interfaces or ()}
    own = vmi.metadata.namespace or ""
    for index, network in enumerate(vmi.spec.networks or ()):
        definition, interface = reference(network, own), interfaces.get(network.name)
        if definition is None or interface is None or definition.partition("/")[0] not in (own, SHARED_NAMESPACE):
            continue
        yield index, network, interface, definition


def annotation(vmi: VirtualMachineInstance, present: str | None = None) -> str | None:
    """The pod's networks annotation, JSON; None without secondary networks. `vmi` has its defaults applied.

    `present` is the pod's current annotation. An absent interface stays listed until the guest has released it, and is
    never added.
    """
    plugged = _interfaces_of(present)
    entries = []
    for _, network, interface, definition in _joined(vmi):
        name = pod_interface(network.name)
        if interface.state == "absent" and name not in plugged:
            continue
        namespace, _, short = definition.partition("/")
        entry = {"name": short, "namespace": namespace, "interface": name}
        mac = (interface.macAddress or "").lower().replace("-", ":")
        entries.append({**entry, "mac": mac} if mac else entry)
    return json.dumps(entries, separators=(",", ":")) if entries else None


def _interfaces_of(text: str | None) -> set[str]:
    try:
        entries = json.loads(text or "[]")
    except (ValueError, RecursionError):
        return set()
    if not isinstance(entries, list):
        return set()
    return {str(entry.get("interface")) for entry in entries if isinstance(entry, dict)}


def update_annotation(vmi: VirtualMachineInstance, pod: Pod) -> Iterator[Patch]:
    """The patch that updates a pod's networks annotation after NIC hot-plug (controller.vmi.nic_hotplug).

    Sent to pods/status, which accepts annotations: the controller has no permission to update pods.
    """
    present = (pod.metadata.annotations or {}).get(ANNOTATION_NETWORKS)
    if pod.metadata.deletionTimestamp or annotation(vmi, present) == present:
        return
    body = {"metadata": {"uid": pod.metadata.uid, "annotations": {ANNOTATION_NETWORKS: annotation(vmi, present)}}}
    yield Patch(Pod, pod.metadata.namespace or "", pod.metadata.name or "", body, subresource="status")


# ---- resources -------------------------------------------------------------------------------------------------------


def _resource(definition: NetworkMetadata | None) -> str | None:
    annotations = (definition.metadata.annotations or {}) if definition is not None else {}
    return annotations.get(ANNOTATION_RESOURCE) or None


def _resources(vmi: VirtualMachineInstance, definitions: Definitions) -> Iterator[tuple[Network, Interface, str]]:
    for _, network, interface, name in _joined(vmi):
        resource = _resource(definitions.get(name))
        if resource is not None and interface.state != "absent":
            yield network, interface, resource


def amounts(vmi: VirtualMachineInstance, definitions: Definitions) -> dict[str, str]:
    """The device resources of the definitions: one device per network."""
    counted = Counter(resource for _, _, resource in _resources(vmi, definitions))
    return {resource: str(count) for resource, count in counted.items()}


def environment(vmi: VirtualMachineInstance, definitions: Definitions) -> dict[str, str]:
    """Environment variables that name the resource of each sriov interface, for the launcher."""
    return {
        f"{ENVIRONMENT_PREFIX}{network.name}": resource
        for network, interface, resource in _resources(vmi, definitions)
        if interface.sriov is not None
    }


# ---- problems --------------------------------------------------------------------------------------------------------


def problems(vmi: VirtualMachineInstance, definitions: Definitions, served: bool) -> list[str]:
    """Why the pod cannot be created yet: one message for each definition that is missing or invalid."""
    found = dict[str, None]()
    for index, _, interface, name in _joined(vmi):
        if interface.state == "absent":
            continue
        where = f"spec.networks[{index}].multus.networkName"
        problem = _missing(name, where, served) if name not in definitions else _invalid(definitions[name], interface)
        if problem:
            found[problem] = None
    return list(found)


def _missing(reference: str, where: str, served: bool) -> str:
    namespace, _, name = reference.partition("/")
    how = "create it, or reference another one"
    if not served:
        how = (
            "the cluster does not serve this kind: apply its CustomResourceDefinition (part of the manifests of "
            "hyperlet and of Multus), then create it"
        )
    return f"NetworkAttachmentDefinition {name} not found in namespace {namespace} ({where}): {how}"


def _invalid(definition: NetworkMetadata, interface: Interface) -> str | None:
    """Why the definition cannot be used. Any user of a namespace may write one: it must not request other resources."""
    resource = _resource(definition)
    meta = definition.metadata
    where = f"NetworkAttachmentDefinition {meta.namespace}/{meta.name}: annotation {ANNOTATION_RESOURCE}"
    if resource is None:
        if interface.sriov is None:
            return None
        return f"{where}: required: it names the device plugin resource for interface {interface.name!r} (sriov)"
    prefix = resource.partition("/")[0]
    reserved = (
        resource.startswith(_RESERVED_RESOURCES) or prefix == "kubernetes.io" or prefix.endswith(".kubernetes.io")
    )
    if reserved or not _RESOURCE.fullmatch(resource) or syntax.object_name(prefix):
        return f"{where}: {resource[:80]!r} is not a device plugin resource such as bridge.network.kubevirt.io/br1"
    return None

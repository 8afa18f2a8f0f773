"""What the secondary networks of a VMI ask of its pod: the annotation, resources and environment. Pure.

The annotation is the Network Plumbing Working Group's (api.network_attachments); whoever attaches networks, Multus or
the handler, goes by it. Resource and environment are KubeVirt's way of handing over devices.
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
from controller.cache.definitions import NetworkAttachmentDefinition

Definitions = Mapping[str, NetworkAttachmentDefinition]
"""By `namespace/name`."""

ENVIRONMENT_PREFIX = "KUBEVIRT_RESOURCE_NAME_"
_RESERVED_RESOURCES = "devices.kubevirt.io/"
_RESOURCE = re.compile(
    r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)+/[A-Za-z0-9][-A-Za-z0-9_.]{0,62}"
)


def reference(network: Network, namespace: str) -> str | None:
    """`namespace/name` of the definition that a network names; `namespace` is the VMI's."""
    if network.multus is None:
        return None
    name = network.multus.networkName
    return name if "/" in name else f"{namespace}/{name}"


def references(spec: VirtualMachineInstanceSpec, namespace: str) -> list[str]:
    """All definitions that a VMI names, each once."""
    return list(dict.fromkeys(found for network in spec.networks or () if (found := reference(network, namespace))))


def _joined(vmi: VirtualMachineInstance) -> Iterator[tuple[int, Network, Interface, str]]:
    """Place, network, interface and definition of every secondary network, absent ones too.

    Those of foreign namespaces, which validation refuses, are left out here once more: the VMI may have been changed
    since its pod was made, and who writes VMIs may not be one who writes pods.
    """
    interfaces = {interface.name: interface for interface in vmi.spec.domain.devices.interfaces or ()}
    own = vmi.metadata.namespace or ""
    for index, network in enumerate(vmi.spec.networks or ()):
        definition, interface = reference(network, own), interfaces.get(network.name)
        if definition is None or interface is None or definition.partition("/")[0] not in (own, SHARED_NAMESPACE):
            continue
        yield index, network, interface, definition


def annotation(vmi: VirtualMachineInstance, present: str | None = None) -> str | None:
    """The pod's list of networks as JSON; None for none. `vmi` has its defaults applied.

    `present` is the list that the pod has already. What is to be unplugged stays in it until the guest has let go of
    it, and comes into none.
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
    """Gives a pod its list of networks anew when the VMI has got another or lost one (controller.vmi.nic_hotplug).

    Through pods/status: the API server takes annotations there too, and the controller may not touch pods otherwise.
    """
    present = (pod.metadata.annotations or {}).get(ANNOTATION_NETWORKS)
    if pod.metadata.deletionTimestamp or annotation(vmi, present) == present:
        return
    body = {"metadata": {"uid": pod.metadata.uid, "annotations": {ANNOTATION_NETWORKS: annotation(vmi, present)}}}
    yield Patch(Pod, pod.metadata.namespace or "", pod.metadata.name or "", body, subresource="status")


# ---- resources ------------------------------------------------------------------------------------------------------


def _resource(definition: NetworkAttachmentDefinition | None) -> str | None:
    annotations = (definition.metadata.annotations or {}) if definition is not None else {}
    return annotations.get(ANNOTATION_RESOURCE) or None


def _resources(vmi: VirtualMachineInstance, definitions: Definitions) -> Iterator[tuple[Network, Interface, str]]:
    for _, network, interface, name in _joined(vmi):
        resource = _resource(definitions.get(name))
        if resource is not None and interface.state != "absent":
            yield network, interface, resource


def amounts(vmi: VirtualMachineInstance, definitions: Definitions) -> dict[str, str]:
    """The resources that the definitions name: one for every network that uses them."""
    counted = Counter(resource for _, _, resource in _resources(vmi, definitions))
    return {resource: str(count) for resource, count in counted.items()}


def environment(vmi: VirtualMachineInstance, definitions: Definitions) -> dict[str, str]:
    """By which resource the launcher finds the device of an sriov interface."""
    return {
        f"{ENVIRONMENT_PREFIX}{network.name}": resource
        for network, interface, resource in _resources(vmi, definitions)
        if interface.sriov is not None
    }


# ---- what is wrong --------------------------------------------------------------------------------------------------


def problems(vmi: VirtualMachineInstance, definitions: Definitions, served: bool) -> list[str]:
    """Why the pod cannot be made yet, one sentence for each definition that is missing or useless."""
    found = dict[str, None]()
    for index, _, interface, name in _joined(vmi):
        if interface.state == "absent":
            continue
        where = f"spec.networks[{index}].multus.networkName"
        words = _missing(name, where, served) if name not in definitions else _useless(definitions[name], interface)
        if words:
            found[words] = None
    return list(found)


def _missing(reference: str, where: str, served: bool) -> str:
    namespace, _, name = reference.partition("/")
    how = "create it there, or name another"
    if not served:
        how = (
            "this cluster does not know the kind: apply its CustomResourceDefinition (it is among hyperlet's manifests "
            "and among Multus'), then create it there"
        )
    return f"NetworkAttachmentDefinition {name} not found in namespace {namespace} ({where}): {how}"


def _useless(definition: NetworkAttachmentDefinition, interface: Interface) -> str | None:
    """Anybody in a namespace may write a definition: it must not ask for the pod's CPUs or for our own devices."""
    resource = _resource(definition)
    meta = definition.metadata
    where = f"NetworkAttachmentDefinition {meta.namespace}/{meta.name}: annotation {ANNOTATION_RESOURCE}"
    if resource is None:
        if interface.sriov is None:
            return None
        return f"{where} is missing: it names the resource whose devices interface {interface.name!r} (sriov) gets"
    prefix = resource.partition("/")[0]
    reserved = (
        resource.startswith(_RESERVED_RESOURCES) or prefix == "kubernetes.io" or prefix.endswith(".kubernetes.io")
    )
    if reserved or not _RESOURCE.fullmatch(resource) or syntax.object_name(prefix):
        return f"{where}: {resource[:80]!r} is no device plugin's resource such as bridge.network.kubevirt.io/br1"
    return None

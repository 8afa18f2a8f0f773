"""Builds the launcher pod and PodDisruptionBudget of a VMI (docs/architecture.md, "The launcher pod"). Pure."""

import hashlib
from typing import Any

import msgspec

from api import names
from api.k8s import owners
from api.k8s.meta import Json
from api.kubevirt.vmi import Probe, VirtualMachineInstance, VirtualMachineInstanceSpec
from api.network_attachments import ANNOTATION_NETWORKS
from controller.installation.settings import ControllerSettings
from controller.launcher_pod import metadata_propagation, resize, resources, user_namespaces
from controller.launcher_pod import networks as pod_networks
from controller.launcher_pod import volumes as pod_volumes
from controller.launcher_pod.networks import Definitions
from controller.launcher_pod.volumes import Claims

CHANGING_LABELS = frozenset({names.LABEL_SCHEDULABLE, names.LABEL_KVM})
"""Node labels that the handler changes while VMs run there. A pod must not require them: a restarted kubelet repeats
admission of its running pods, and terminates those whose required labels are missing. The device requests keep a pod
off nodes without a handler or without KVM."""
NAME_LIMIT = 253
BUDGET_PREFIX = "kubevirt-disruption-budget-"
HOSTNAME_LIMIT = 63
LABEL_LIMIT = 63
SUFFIX_ALPHABET = "bcdfghjklmnpqrstvwxz2456789"
"""The alphabet of Kubernetes' random suffixes: no vowels, no ambiguous characters."""


def pod_name(vmi: VirtualMachineInstance) -> str:
    """`virt-launcher-<vmi>-<5 characters>`, the suffix hashed from the VMI's UID.

    A create repeated after a crash fails with AlreadyExists, so there is never a second pod.
    """
    number = int.from_bytes(hashlib.sha256((vmi.metadata.uid or "").encode()).digest()[:8], "big")
    suffix = ""
    for _ in range(5):
        number, digit = divmod(number, len(SUFFIX_ALPHABET))
        suffix += SUFFIX_ALPHABET[digit]
    stem = names.LAUNCHER_PREFIX + (vmi.metadata.name or "")
    return f"{stem[: NAME_LIMIT - 6].rstrip('-.')}-{suffix}"


def launcher_pod(
    vmi: VirtualMachineInstance,
    settings: ControllerSettings,
    claims: Claims,
    definitions: Definitions | None = None,
    host_users: bool = False,
) -> Json:
    """The pod to create. `vmi` has its defaults applied; `claims` are the claims referenced by its volumes,
    `definitions` the NetworkAttachmentDefinitions of its networks. `host_users`: never request a user namespace.

    Raises InvalidObject for a volume name that cannot be a path component.
    """
    runtime_class = settings.configuration.defaultRuntimeClass
    own_users = settings.user_namespaces and user_namespaces.possible(
        vmi, claims, image_volumes=settings.image_volumes, runtime_class=runtime_class
    )
    namespace = {"hostUsers": False} if own_users else {}
    return {
        "metadata": {
            "name": pod_name(vmi),
            "namespace": vmi.metadata.namespace,
            "labels": _labels(vmi),
            "annotations": _annotations(vmi),
            "ownerReferences": [owners.reference(names.KIND_VMI, vmi.metadata)],
        },
        "spec": {**_spec(vmi, settings, claims, definitions or {}), **({} if host_users else namespace)},
    }


def disruption_budget(vmi: VirtualMachineInstance) -> Json | None:
    """The PodDisruptionBudget of a VMI whose evictionStrategy protects it from evictions; None for others.

    `vmi` has its defaults applied. The gateway refuses such evictions with a reason; the budget refuses them while no
    gateway is available. minAvailable is absolute, so the disruption controller needs no scale subresource.
    """
    if vmi.spec.evictionStrategy not in (names.EVICTION_LIVE_MIGRATE, names.EVICTION_EXTERNAL):
        return None
    return {
        "metadata": {
            "name": f"{BUDGET_PREFIX}{pod_name(vmi).removeprefix(names.LAUNCHER_PREFIX)}"[-NAME_LIMIT:].lstrip("-."),
            "namespace": vmi.metadata.namespace,
            "labels": {names.LABEL_CREATED_BY: vmi.metadata.uid or ""},
            "ownerReferences": [owners.reference(names.KIND_VMI, vmi.metadata)],
        },
        "spec": {"minAvailable": 1, "selector": {"matchLabels": {names.LABEL_CREATED_BY: vmi.metadata.uid or ""}}},
    }


def grace_seconds(spec: VirtualMachineInstanceSpec) -> int:
    """Seconds that the guest has to power off."""
    # Capped here too: objects stored while no gateway was available have not been through admission.
    asked = 30 if spec.terminationGracePeriodSeconds is None else spec.terminationGracePeriodSeconds
    return min(asked, names.MAX_GRACE_SECONDS)


def pod_grace_seconds(spec: VirtualMachineInstanceSpec) -> int:
    """The pod's terminationGracePeriodSeconds: the guest's and a margin for clean-up."""
    return grace_seconds(spec) + names.GRACE_MARGIN_SECONDS


def label_value(text: str) -> str:
    """`text` as a label value: truncated and with a hash if it is too long."""
    if len(text) <= LABEL_LIMIT:
        return text
    return text[: LABEL_LIMIT - 9].rstrip("-._") + "-" + hashlib.sha256(text.encode()).hexdigest()[:8]


def _labels(vmi: VirtualMachineInstance) -> dict[str, str]:
    name = label_value(vmi.metadata.name or "")
    theirs, _ = metadata_propagation.for_pod(vmi)
    return {
        **theirs,
        names.LABEL_APP: names.APP_LAUNCHER,
        names.LABEL_CREATED_BY: vmi.metadata.uid or "",
        names.LABEL_VM_NAME: name,
        names.LABEL_VMI_ID: name,
    }


def _annotations(vmi: VirtualMachineInstance) -> dict[str, str]:
    labels, annotations = metadata_propagation.for_pod(vmi)
    networks = pod_networks.annotation(vmi)
    return {
        # Users may override it: admission webhooks may inject other containers.
        names.ANNOTATION_DEFAULT_CONTAINER: names.COMPUTE_CONTAINER,
        **annotations,
        **metadata_propagation.record(labels, annotations),
        names.ANNOTATION_DOMAIN: vmi.metadata.name or "",
        **({ANNOTATION_NETWORKS: networks} if networks else {}),
    }


def _spec(vmi: VirtualMachineInstance, settings: ControllerSettings, claims: Claims, definitions: Definitions) -> Json:
    spec = vmi.spec
    parts = pod_volumes.parts(spec, claims, settings.image_volumes)
    # If set, the ServiceAccount admission plugin adds none of its own, so all must be listed.
    pull_secrets = dict.fromkeys([*(secret for part in parts for secret in part.pull_secrets), *settings.pull_secrets])
    return _present(
        {
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "hostname": hostname(vmi),
            "subdomain": spec.subdomain,
            "dnsPolicy": spec.dnsPolicy,
            "dnsConfig": _plain(spec.dnsConfig),
            "terminationGracePeriodSeconds": pod_grace_seconds(spec),
            "readinessGates": [{"conditionType": names.READINESS_GATE}],
            "securityContext": _pod_security(),
            "nodeSelector": _node_selector(spec, settings),
            "affinity": _affinity(spec),
            "tolerations": _plain(spec.tolerations),
            "topologySpreadConstraints": _plain(spec.topologySpreadConstraints),
            "schedulerName": spec.schedulerName,
            "priorityClassName": spec.priorityClassName,
            "runtimeClassName": settings.configuration.defaultRuntimeClass,
            "imagePullSecrets": [{"name": secret} for secret in pull_secrets],
            "containers": [_compute(vmi, settings, parts, definitions)],
            "volumes": [volume for part in parts for volume in part.volumes],
        }
    )


def hostname(vmi: VirtualMachineInstance) -> str:
    """Host name of pod and guest: the spec's, else the VMI's name as a DNS label."""
    if vmi.spec.hostname:
        return vmi.spec.hostname
    return (vmi.metadata.name or "").replace(".", "-")[:HOSTNAME_LIMIT].rstrip("-")


def _pod_security() -> Json:
    return {
        "runAsUser": names.LAUNCHER_UID,
        "runAsGroup": names.LAUNCHER_UID,
        "runAsNonRoot": True,
        "fsGroup": names.LAUNCHER_UID,
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def _node_selector(spec: VirtualMachineInstanceSpec, settings: ControllerSettings) -> dict[str, str]:
    selector = {**(settings.developer.nodeSelectors or {}), **(spec.nodeSelector or {})}
    if spec.architecture:
        selector["kubernetes.io/arch"] = spec.architecture
    return {key: value for key, value in selector.items() if key not in CHANGING_LABELS}


def _affinity(spec: VirtualMachineInstanceSpec) -> Json | None:
    """The VMI's affinity without CHANGING_LABELS. Required terms on `hyperlet/kvm` become preferred ones."""
    affinity: Json = _plain(spec.affinity) or {}
    node = dict(affinity.get("nodeAffinity") or {})
    required = node.pop("requiredDuringSchedulingIgnoredDuringExecution", None) or {}
    terms, wishes = [], []
    for term in required.get("nodeSelectorTerms") or ():
        stays = [each for each in term.get("matchExpressions") or () if each["key"] not in CHANGING_LABELS]
        wishes += [each for each in term.get("matchExpressions") or () if each["key"] == names.LABEL_KVM]
        terms.append(_present({**term, "matchExpressions": stays}))
    if (value := (spec.nodeSelector or {}).get(names.LABEL_KVM)) is not None:
        wishes.append({"key": names.LABEL_KVM, "operator": "In", "values": [value]})
    if all(terms) and terms:
        # An empty term matches no node; it is left if the term had only CHANGING_LABELS. Then drop the requirement.
        node["requiredDuringSchedulingIgnoredDuringExecution"] = {"nodeSelectorTerms": terms}
    wanted = [{"weight": 100, "preference": {"matchExpressions": [wish]}} for wish in wishes]
    preferred = "preferredDuringSchedulingIgnoredDuringExecution"
    if wanted or preferred in node:
        node[preferred] = [*(node.get(preferred) or ()), *wanted]
    return _present({**affinity, "nodeAffinity": node}) or None


def _ports(spec: VirtualMachineInstanceSpec) -> list[Json]:
    """Container ports from the interfaces' ports, so that Services and probes can refer to them by name."""
    return [
        _present({"name": port.name, "containerPort": port.port, "protocol": port.protocol or "TCP"})
        for interface in spec.domain.devices.interfaces or ()
        for port in interface.ports or ()
    ]


def _compute(
    vmi: VirtualMachineInstance,
    settings: ControllerSettings,
    parts: list[pod_volumes.PodPart],
    definitions: Definitions,
) -> Json:
    environment = {
        "HYPERLET_NAMESPACE": vmi.metadata.namespace or "",
        "HYPERLET_NAME": vmi.metadata.name or "",
        "HYPERLET_UID": vmi.metadata.uid or "",
        "HYPERLET_GRACE_SECONDS": str(grace_seconds(vmi.spec)),
        **pod_networks.environment(vmi, definitions),
    }
    return _present(
        {
            "name": names.COMPUTE_CONTAINER,
            "image": settings.launcher_image,
            "imagePullPolicy": settings.launcher_pull_policy,
            "ports": _ports(vmi.spec),
            "env": [{"name": name, "value": value} for name, value in environment.items()],
            "resources": resources.requirements(vmi.spec, settings, pod_networks.amounts(vmi, definitions)),
            "resizePolicy": list(resize.POLICY),
            "securityContext": {
                "allowPrivilegeEscalation": False,
                "privileged": False,
                "capabilities": {"drop": ["ALL"]},
            },
            "livenessProbe": _probe(vmi.spec.livenessProbe),
            "readinessProbe": _probe(vmi.spec.readinessProbe),
            "volumeMounts": [mount for part in parts for mount in part.mounts],
            "volumeDevices": [device for part in parts for device in part.devices],
            "terminationMessagePolicy": "File",
        }
    )


def _probe(probe: Probe | None) -> Json | None:
    """The container probe for a network probe: the kubelet connects to the pod IP, and NAT forwards to the guest."""
    if probe is None or (probe.tcpSocket is None and probe.httpGet is None):
        return None
    plain: Json = msgspec.to_builtins(probe)
    plain.pop("guestAgentPing", None)
    plain.pop("exec", None)
    return plain


def _plain(value: Any) -> Any:
    return None if value is None else msgspec.to_builtins(value)


def _present(values: Json) -> Json:
    return {key: value for key, value in values.items() if value is not None and value != [] and value != {}}

"""The controller's stores with their indexes and lookups, and the effective settings."""

from collections.abc import Callable
from typing import Any

from api import launcher_pods, names
from api.k8s.objects import ControllerRevision, Event, Node, PersistentVolumeClaim, Pod
from api.kinds.catalog import CATALOG, Catalog
from api.kubevirt.configuration import KubeVirtConfiguration
from api.kubevirt.kubevirt import KubeVirt
from api.kubevirt.vm import VirtualMachine
from api.kubevirt.vmi import VirtualMachineInstance
from api.network_attachments import NetworkAttachmentDefinition
from controller.cache.definitions import Definitions, NetworkMetadata
from controller.cache.node_health import NodeHealth
from controller.installation.admission_policies import PolicyWatcher
from controller.installation.settings import (
    ControllerSettings,
    launcher_image,
    launcher_pull_policy,
    offers_kvm,
    pull_secrets,
    spec_of,
)
from controller.launcher_pod import networks as pod_networks
from controller.launcher_pod import user_namespaces
from controller.launcher_pod import volumes as pod_volumes
from controller.launcher_pod.pod import pod_name
from controller.vm import revisions
from kit.cache import Store, key_of
from kit.kube import Kube

# Excludes Warnings about the guest's probes, and those whose cause is in the pod's status.
_WARNINGS = (
    "involvedObject.kind=Pod,type=Warning,reason!=Unhealthy,reason!=BackOff,reason!=FailedScheduling,reason!=Failed"
)


def _is_launcher(pod: Pod) -> bool:
    return launcher_pods.origin(pod) is not None


def _origin(pod: Pod) -> launcher_pods.Origin:
    return launcher_pods.origin(pod) or launcher_pods.Origin("", "")


def _is_launcher_warning(event: Event) -> bool:
    return (event.involvedObject.name or "").startswith(names.LAUNCHER_PREFIX)


class ClusterCache:
    """The controller's stores, for all namespaces: one of each kind that it watches, and of Kubernetes' own kinds.

    Read-only; start each of `stores`.
    """

    def __init__(self, kube: Kube, catalog: Catalog = CATALOG) -> None:
        self.definitions = Definitions(kube)
        self.stores: dict[type[Any], Store[Any]] = {
            **{kind.struct: Store(kube, kind.struct) for kind in catalog.watched()},
            NetworkAttachmentDefinition: self.definitions,
            # Not by label: users can remove it, and an invisible pod would count as deleted.
            Pod: Store(kube, Pod, fields={"spec.restartPolicy": launcher_pods.RESTART_POLICY}, keep=_is_launcher),
            PersistentVolumeClaim: Store(kube, PersistentVolumeClaim),
            Node: Store(kube, Node),
            Event: Store(kube, Event, fields=_WARNINGS, keep=_is_launcher_warning),
            ControllerRevision: Store(kube, ControllerRevision, labels={names.LABEL_MANAGED_BY: names.FIELD_MANAGER}),
        }
        """By the class of their objects."""
        self.vms: Store[VirtualMachine] = self.stores[VirtualMachine]
        self.vmis: Store[VirtualMachineInstance] = self.stores[VirtualMachineInstance]
        self.kubevirts: Store[KubeVirt] = self.stores[KubeVirt]
        self.pods: Store[Pod] = self.stores[Pod]
        self.claims: Store[PersistentVolumeClaim] = self.stores[PersistentVolumeClaim]
        self.nodes: Store[Node] = self.stores[Node]
        self.warnings: Store[Event] = self.stores[Event]
        self.revisions: Store[ControllerRevision] = self.stores[ControllerRevision]
        self.health = NodeHealth(self.nodes)
        self.policies = PolicyWatcher(kube)
        self.image_volumes = False
        self._settings: ControllerSettings | None = None
        self.pods.index("name", lambda pod: [f"{pod.metadata.namespace}/{_origin(pod).name}"])
        self.revisions.index("owner", lambda revision: filter(None, [revisions.owner_uid(revision)]))
        self.vmis.index(
            "claim", lambda vmi: [f"{vmi.metadata.namespace}/{name}" for name in pod_volumes.claim_names(vmi.spec)]
        )
        self.vmis.index("definition", lambda vmi: pod_networks.references(vmi.spec, vmi.metadata.namespace or ""))
        self.vmis.index("node", lambda vmi: filter(None, [vmi.status.nodeName if vmi.status else None]))
        self.warnings.index("pod", lambda event: filter(None, [event.involvedObject.uid]))
        self.nodes.on_change(lambda _old, _new: self._forget())
        self.kubevirts.on_change(lambda _old, _new: self._forget())

    def _forget(self) -> None:
        self._settings = None

    def use_image_volumes(self) -> None:
        """New launcher pods use image volumes from now on."""
        self.image_volumes = True
        self._forget()

    @property
    def settings(self) -> ControllerSettings:
        """The effective settings, recomputed after a change of a Node or the KubeVirt CR."""
        if self._settings is None:
            spec = spec_of(self.kubevirts.all())
            self._settings = ControllerSettings(
                launcher_image=launcher_image(),
                launcher_pull_policy=launcher_pull_policy(spec),
                pull_secrets=pull_secrets(spec),
                configuration=spec.configuration or KubeVirtConfiguration(),
                kvm_offered=offers_kvm(self.nodes.all()),
                image_volumes=self.image_volumes,
                user_namespaces=user_namespaces.offered(self.nodes.all()),
            )
        return self._settings

    def trouble(self) -> str | None:
        """Why the caches are not ready; None if they are."""
        late = [store.plural for store in self.stores.values() if not store.is_synced]
        return f"not synced: {', '.join(late)}" if late else None

    def made_for(self, vmi: VirtualMachineInstance) -> list[Pod]:
        """The launcher pods created for VMIs of this name, including earlier ones."""
        return self.pods.by("name", f"{vmi.metadata.namespace}/{vmi.metadata.name}")

    def pod_of(self, vmi: VirtualMachineInstance) -> Pod | None:
        """The VMI's launcher pod: the one in activePods, else the one with the derived name, else any with its UID."""
        found = [pod for pod in self.made_for(vmi) if _origin(pod).uid == vmi.metadata.uid]
        known, name = launcher_pods.may_run_qemu(vmi), pod_name(vmi)
        found.sort(key=lambda pod: (pod.metadata.uid not in known, pod.metadata.name != name))
        return found[0] if found else None

    def strays_of(self, vmi: VirtualMachineInstance) -> list[Pod]:
        """The launcher pods of earlier VMIs of this name."""
        return [pod for pod in self.made_for(vmi) if _origin(pod).uid != vmi.metadata.uid]

    def claims_of(self, vmi: VirtualMachineInstance) -> dict[str, PersistentVolumeClaim]:
        """The existing claims referenced by the VMI's volumes, by name."""
        found = {name: self.claims.get(vmi.metadata.namespace, name) for name in pod_volumes.claim_names(vmi.spec)}
        return {name: claim for name, claim in found.items() if claim is not None}

    def definitions_of(self, vmi: VirtualMachineInstance) -> dict[str, NetworkMetadata]:
        """The existing NetworkAttachmentDefinitions referenced by the VMI's networks, by namespace/name."""
        named = pod_networks.references(vmi.spec, vmi.metadata.namespace or "")
        found = {name: self.definitions.get(*name.partition("/")[::2]) for name in named}
        return {name: definition for name, definition in found.items() if definition is not None}

    def warning_about(self, pod: Pod) -> tuple[str, str] | None:
        """Reason and message of the latest Warning Event about a pod."""
        about = self.warnings.by("pod", pod.metadata.uid or "")
        # The API server validates the namespace of an Event's object, but not its UID.
        events = [event for event in about if event.metadata.namespace == pod.metadata.namespace]
        if not events:
            return None
        latest = max(events, key=lambda event: event.lastTimestamp or event.eventTime or "")
        return latest.reason or "PodWarning", latest.message or ""

    def on_vmi_news(self, callback: Callable[[tuple[str, str]], None]) -> None:
        """Registers `callback`, called with the key of a VMI when its pod, a claim, a network, a Warning Event or its
        node changes."""

        def of_pod(_old: Pod | None, new: Pod | None) -> None:
            pod = new or _old
            if pod is not None and (origin := launcher_pods.origin(pod)) is not None:
                callback((pod.metadata.namespace or "", origin.name))

        def of_claim(old: PersistentVolumeClaim | None, new: PersistentVolumeClaim | None) -> None:
            claim = new or old
            if claim is not None:
                for vmi in self.vmis.by("claim", f"{claim.metadata.namespace}/{claim.metadata.name}"):
                    callback(key_of(vmi))

        def of_definition(old: NetworkMetadata | None, new: NetworkMetadata | None) -> None:
            for vmi in self.vmis.by("definition", "/".join(key_of(new or old))):
                callback(key_of(vmi))

        def of_warning(_old: Event | None, new: Event | None) -> None:
            pod = self.pods.get(new.involvedObject.namespace, new.involvedObject.name or "") if new else None
            of_pod(None, pod)

        def of_node(name: str) -> None:
            for vmi in self.vmis.by("node", name):
                callback(key_of(vmi))

        self.health.on_turn(of_node)
        self.pods.on_change(of_pod)
        self.claims.on_change(of_claim)
        self.definitions.on_change(of_definition)
        self.warnings.on_change(of_warning)

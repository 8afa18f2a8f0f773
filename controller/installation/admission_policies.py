"""Checks that the ValidatingAdmissionPolicies of `manifests/` are in force; reported in the KubeVirt CR's status."""

import asyncio
from collections.abc import Callable, Collection
from typing import NamedTuple

import msgspec

from api.errors import HyperletError, NotFound
from api.k8s.resource import Resource
from kit import log
from kit.kube import Kube

POLICIES = (
    "hyperlet-finalizers",
    "hyperlet-handler-events",
    "hyperlet-handler-instances",
    "hyperlet-handler-nodes",
    "hyperlet-handler-pods",
    "hyperlet-instances",
)
"""The policies in `manifests/`, each with a binding of the same name."""
LOOK_SECONDS = 300.0
GROUP_VERSION = "admissionregistration.k8s.io/v1"

_log = log.logger(component="policies")


class PolicyCheck(NamedTuple):
    """Whether all policies are in force: status, reason and message of the condition."""

    in_force: bool
    reason: str
    message: str


def _registration(kind: str, plural: str) -> Resource:
    return Resource("admissionregistration.k8s.io", "v1", kind, plural, namespaced=False)


class _PolicyMeta(msgspec.Struct, gc=False):
    name: str


class AdmissionPolicy(msgspec.Struct, gc=False):
    """A ValidatingAdmissionPolicy; only its name is read."""

    RESOURCE = _registration("ValidatingAdmissionPolicy", "validatingadmissionpolicies")

    metadata: _PolicyMeta


class _BindingSpec(msgspec.Struct, gc=False):
    policyName: str = ""
    validationActions: list[str] = []


class AdmissionPolicyBinding(msgspec.Struct, gc=False):
    """A ValidatingAdmissionPolicyBinding; only its policy and actions are read."""

    RESOURCE = _registration("ValidatingAdmissionPolicyBinding", "validatingadmissionpolicybindings")

    metadata: _PolicyMeta
    spec: _BindingSpec = msgspec.field(default_factory=_BindingSpec)


NOT_SERVED = PolicyCheck(
    False,
    "PoliciesNotServed",
    f"the API server does not serve ValidatingAdmissionPolicies ({GROUP_VERSION}): the token of one node's handler "
    "can write every Node and pods/status, and every VirtualMachineInstance while no gateway is available; finalizers "
    "are not protected; use Kubernetes 1.34 or later",
)


def check_policies(policies: Collection[AdmissionPolicy], bindings: Collection[AdmissionPolicyBinding]) -> PolicyCheck:
    """Checks the API server's policies and bindings. Pure."""
    there = {policy.metadata.name for policy in policies}
    denied = {each.spec.policyName for each in bindings if "Deny" in each.spec.validationActions}
    missing = [f"ValidatingAdmissionPolicy {name}" for name in POLICIES if name not in there]
    missing += [
        f"a ValidatingAdmissionPolicyBinding of {name} with action Deny" for name in POLICIES if name not in denied
    ]
    if missing:
        return PolicyCheck(False, "PoliciesMissing", f"missing: {', '.join(missing)}; apply manifests/policies-*.yaml")
    return PolicyCheck(
        True, "PoliciesInForce", "handlers can write only objects of their own node, and finalizers are protected"
    )


class PolicyWatcher:
    """Checks the policies every LOOK_SECONDS. `verdict` is None until the first check."""

    def __init__(self, kube: Kube, look_seconds: float = LOOK_SECONDS) -> None:
        self._kube = kube
        self._pause = look_seconds
        self._callbacks: list[Callable[[], None]] = []
        self.verdict: PolicyCheck | None = None

    def on_change(self, callback: Callable[[], None]) -> None:
        """Registers `callback` for changes of `verdict`."""
        self._callbacks.append(callback)

    async def run(self) -> None:
        """Checks until cancelled."""
        while True:
            await self.refresh()
            await asyncio.sleep(self._pause)

    async def refresh(self) -> None:
        """Checks once. On failure keeps the last verdict and logs the error."""
        try:
            self._set(await self._look())
        except HyperletError as error:
            _log.warning("Cannot list ValidatingAdmissionPolicies: retrying", why=error.message)

    async def _look(self) -> PolicyCheck:
        try:
            policies, _ = await self._kube.list(AdmissionPolicy)
            bindings, _ = await self._kube.list(AdmissionPolicyBinding)
        except NotFound:
            return NOT_SERVED
        return check_policies(policies, bindings)

    def _set(self, verdict: PolicyCheck) -> None:
        if verdict == self.verdict:
            return
        if not verdict.in_force:
            _log.warning("Node restriction is not in force", reason=verdict.reason, why=verdict.message)
        self.verdict = verdict
        for callback in self._callbacks:
            callback()

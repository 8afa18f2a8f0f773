"""Whether the API server enforces the policies in `manifests/`: found out by asking it, and told in the KubeVirt CR."""

import asyncio
from collections.abc import Callable, Collection
from typing import NamedTuple

import msgspec

from api.errors import HyperletError, NotFound
from kit import kinds, log
from kit.kube import Kube

POLICIES = (
    "hyperlet-finalizers",
    "hyperlet-handler-events",
    "hyperlet-handler-instances",
    "hyperlet-handler-nodes",
    "hyperlet-handler-pods",
    "hyperlet-instances",
)
"""The policies of `manifests/`, each with a binding of the same name."""
LOOK_SECONDS = 300.0
GROUP_VERSION = "admissionregistration.k8s.io/v1"

_log = log.logger(component="policies")


class PolicyCheck(NamedTuple):
    """Whether all policies are in force, and what is missing: reason and message of a condition."""

    in_force: bool
    reason: str
    message: str


class _PolicyMeta(msgspec.Struct, gc=False):
    name: str


class AdmissionPolicy(msgspec.Struct, gc=False):
    """A ValidatingAdmissionPolicy's name."""

    metadata: _PolicyMeta


class _BindingSpec(msgspec.Struct, gc=False):
    policyName: str = ""
    validationActions: list[str] = []


class AdmissionPolicyBinding(msgspec.Struct, gc=False):
    """A ValidatingAdmissionPolicyBinding: which policy is in force, and what it does."""

    metadata: _PolicyMeta
    spec: _BindingSpec = msgspec.field(default_factory=_BindingSpec)


for _struct, _kind, _plural in (
    (AdmissionPolicy, "ValidatingAdmissionPolicy", "validatingadmissionpolicies"),
    (AdmissionPolicyBinding, "ValidatingAdmissionPolicyBinding", "validatingadmissionpolicybindings"),
):
    kinds.register(_struct, kinds.Resource("admissionregistration.k8s.io", "v1", _kind, _plural, namespaced=False))

NOT_SERVED = PolicyCheck(
    False,
    "PoliciesNotServed",
    f"the API server does not serve ValidatingAdmissionPolicies ({GROUP_VERSION}): the token of one node's handler "
    "may write every Node and pods/status, and while no gateway answers every VirtualMachineInstance; finalizers are "
    "not guarded; use Kubernetes 1.34 or later",
)


def check_policies(policies: Collection[AdmissionPolicy], bindings: Collection[AdmissionPolicyBinding]) -> PolicyCheck:
    """The verdict on what the server has. Pure."""
    there = {policy.metadata.name for policy in policies}
    denied = {each.spec.policyName for each in bindings if "Deny" in each.spec.validationActions}
    missing = [f"ValidatingAdmissionPolicy {name}" for name in POLICIES if name not in there]
    missing += [f"a ValidatingAdmissionPolicyBinding that denies by {name}" for name in POLICIES if name not in denied]
    if missing:
        return PolicyCheck(False, "PoliciesMissing", f"{', '.join(missing)}: missing; apply manifests/policies-*.yaml")
    return PolicyCheck(True, "PoliciesInForce", "the API server holds handlers to their own node and guards finalizers")


class PolicyWatcher:
    """Looks at the server's policies again and again. `verdict` is None until it was asked once."""

    def __init__(self, kube: Kube, look_seconds: float = LOOK_SECONDS) -> None:
        self._kube = kube
        self._pause = look_seconds
        self._callbacks: list[Callable[[], None]] = []
        self.verdict: PolicyCheck | None = None

    def on_change(self, callback: Callable[[], None]) -> None:
        """Has `callback` called when the verdict has changed."""
        self._callbacks.append(callback)

    async def run(self) -> None:
        """Looks until cancelled."""
        while True:
            await self.refresh()
            await asyncio.sleep(self._pause)

    async def refresh(self) -> None:
        """Looks once. A failure changes nothing and is logged."""
        try:
            self._set(await self._look())
        except HyperletError as error:
            _log.warning("Cannot see the API server's admission policies: trying again", why=error.message)

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

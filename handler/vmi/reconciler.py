"""Reconciles the VMIs of this node, as planned by `handler.vmi.plan`."""

import asyncio
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import assert_never

from prometheus_client import Counter, Histogram

from api import names
from api.errors import ApiUnavailable, Conflict, HyperletError, LauncherUnavailable, NetworkError, NotFound
from api.k8s.objects import Pod
from api.kubevirt.vmi import VirtualMachineInstance
from api.launcher_pods import END_PHASES, has_ended, may_run_qemu, origin
from handler.launchers.connection import PODS, WAKE, LauncherConnection, SyncRefused
from handler.launchers.discovery import LauncherDiscovery
from handler.launchers.start_limiter import StartLimiter
from handler.node import pod_processes
from handler.pod_network import interface_status
from handler.pod_network.setup import InterfaceMissing
from handler.storage.containerd import PullRefused
from handler.vmi import sync_request
from handler.vmi.node_setup import NodeSetup
from handler.vmi.plan import (
    CONFIRM_SECONDS,
    Action,
    DeferWrite,
    EventText,
    ObservedLauncher,
    PatchVmi,
    RecordEventOnce,
    SetUp,
    digest,
    has_started,
    is_active,
    plan,
    setup_key,
)
from handler.vmi.status import Problem
from handler.vmi.tracked_vm import TrackedVm
from kit import backoff, log
from kit.cache import Store
from kit.kube import Kube
from kit.reconcile import Reconciler, RequeueAfter
from kit.tasks import BackgroundTasks

Key = tuple[str, str]
API_SECONDS = 2.0
"""Retry delay when the API server is unavailable."""
FIRST_PAUSE, LONGEST_PAUSE = 0.2, 30.0
"""Retry delays for setting up a VM."""

SETUP_SECONDS = Histogram(
    "hyperlet_handler_bring_seconds",
    "Time from observing a VMI's hand-over until its VM is set up",
    buckets=(0.1, 0.2, 0.3, 0.5, 0.7, 1, 2, 3, 5, 10, 30, 60),
)
FAILURES = Counter("hyperlet_handler_bring_failures_total", "Failed VM setups, by reason", ["reason"])


class NoProgress(HyperletError):
    """Setup succeeded without effect: the launcher reports success and does nothing."""

    reason = names.REASON_NO_PROGRESS

    def __init__(self, sync: bool) -> None:
        what = "reported success, but the VM is not running" if sync else "still uses an interface that it released"
        super().__init__(f"the launcher {what}: see the log of the launcher pod")


class NicsPending(NetworkError):
    """Interfaces are still to be plugged in; everything else is done."""

    def __init__(self, missing: Mapping[str, str]) -> None:
        super().__init__("; ".join(f"interface {name} is not plugged in: {words}" for name, words in missing.items()))


class VmiReconciler(Reconciler[Key, ObservedLauncher, Action]):
    """Manages every VMI of this node."""

    name = "vmi"

    def __init__(
        self,
        kube: Kube,
        node: str,
        node_setup: NodeSetup,
        kvm: Callable[[], str],
        launcher: Callable[[str, Callable[[], None], StartLimiter], LauncherConnection] = LauncherConnection,
        pods: pathlib.Path = PODS,
        any_alive: Callable[[str], bool] = pod_processes.any_alive,
    ) -> None:
        """`any_alive`: whether a pod UID has a process on this node. It may block."""
        super().__init__()
        self._kube = kube
        self._node = node
        self._node_setup = node_setup
        self._kvm = kvm
        self._launcher = launcher
        self._start_limiter = StartLimiter()
        self._tracked: dict[str, TrackedVm] = {}
        self._closing: set[LauncherConnection] = set()
        """Connections of retired VMs that are being closed."""
        self._tasks = BackgroundTasks(log.task_failed)
        self._discovery = LauncherDiscovery(self._on_discovered, pods, WAKE)
        self._any_alive = any_alive
        self._empty: dict[Key, dict[str, float]] = {}
        """Time at which pods were first found without processes, by VMI and UID."""
        self.vmis: Store[VirtualMachineInstance] = Store(
            kube, VirtualMachineInstance, labels={names.LABEL_NODE_NAME: node}
        )
        self.pods: Store[Pod] = Store(kube, Pod, fields={"spec.nodeName": node})
        self.pods.index("vmi", lambda pod: [made_for.uid] if (made_for := origin(pod)) else [])
        self.pods.index("uid", lambda pod: [pod.metadata.uid or ""] if origin(pod) else [])
        self.vmis.on_change(self._vmi_changed)
        self.pods.on_change(self._pod_changed)

    def __len__(self) -> int:
        return len(self._tracked)

    def living(self) -> set[str]:
        """UIDs of the launcher pods on this node."""
        return {pod.metadata.uid or "" for pod in self.pods.all() if origin(pod)}

    async def run(self, workers: int = 8) -> None:
        """Run until cancelled."""
        # A VMI seen before the pods are listed says nothing about pods that are gone, and is not queued again.
        await self.pods.synced()
        async with asyncio.TaskGroup() as group:
            group.create_task(super().run(workers))
            group.create_task(self._discovery.run())

    # ---- watching --------------------------------------------------------------------------------------------------

    def _vmi_changed(self, old: VirtualMachineInstance | None, new: VirtualMachineInstance | None) -> None:
        vmi = new or old
        if vmi is not None:
            self.queue.add((vmi.metadata.namespace or "", vmi.metadata.name or ""))

    def _pod_changed(self, old: Pod | None, new: Pod | None) -> None:
        pod = new or old
        if pod is None or origin(pod) is None:
            return
        uid = pod.metadata.uid or ""
        if new is None:
            self._forget(uid)
        elif has_ended(new):
            self._retire(uid)
        elif has_started(new):
            self._on_discovered(uid)
        elif new.status.phase in END_PHASES:
            self._discovery.forget(uid)  # rejected by the kubelet before it started
        elif uid not in self._tracked:
            self._discovery.expect(uid)
        self._enqueue_pod(pod)

    def _on_discovered(self, pod_uid: str) -> None:
        """A launcher was found before its VMI's hand-over: connect now, so that the first request need not wait."""
        self._discovery.forget(pod_uid)
        if pod_uid not in self._tracked:
            launcher = self._launcher(pod_uid, lambda: self._enqueue(pod_uid), self._start_limiter)
            self._tracked[pod_uid] = TrackedVm(launcher)

    def _enqueue(self, pod_uid: str) -> None:
        for pod in self.pods.by("uid", pod_uid):
            self._enqueue_pod(pod)

    def _enqueue_pod(self, pod: Pod) -> None:
        if made_for := origin(pod):
            self.queue.add((pod.metadata.namespace or "", made_for.name))

    def _retire(self, pod_uid: str) -> None:
        """The pod has ended but may remain: release everything but the launcher's last report."""
        self._discovery.forget(pod_uid)
        machine = self._tracked.get(pod_uid)
        if machine is None or machine.retired:
            return
        machine.retired = True
        if machine.task is not None:
            machine.task.cancel()
        if machine.resources is not None:
            machine.resources.close()
        self._closing.add(machine.launcher)
        self._tasks.start("release", self._drop(pod_uid, machine), pod_uid=pod_uid)

    def _forget(self, pod_uid: str) -> None:
        self._retire(pod_uid)
        self._tracked.pop(pod_uid, None)

    async def _drop(self, pod_uid: str, machine: TrackedVm) -> None:
        await machine.launcher.close()
        self._closing.discard(machine.launcher)
        await self._node_setup.forget(pod_uid)

    # ---- observing -------------------------------------------------------------------------------------------------

    def _pod_of(self, vmi: VirtualMachineInstance) -> Pod | None:
        """The VMI's pod on this node; one that has not ended, if there are several."""
        own = [
            pod
            for pod in self.pods.by("vmi", vmi.metadata.uid or "-")
            if pod.metadata.namespace == vmi.metadata.namespace
            and pod.spec.nodeName == self._node
            and is_active(vmi, pod)
        ]
        return min(own, key=lambda pod: pod.status.phase in END_PHASES, default=None)

    def launcher_of(self, namespace: str, name: str, uid: str) -> LauncherConnection:
        """The launcher of the VMI with this UID. Raises NotFound if it is not on this node."""
        vmi = self.vmis.get(namespace, name)
        if vmi is not None and vmi.metadata.uid == uid and vmi.status and vmi.status.nodeName == self._node:
            pod = self._pod_of(vmi)
            if pod is not None and (machine := self._tracked.get(pod.metadata.uid or "")):
                return machine.launcher
        raise NotFound(f"the virtual machine instance {namespace}/{name} (UID {uid}) does not run on node {self._node}")

    async def observe(self, key: Key) -> ObservedLauncher | None:
        """State from the caches and the launcher."""
        vmi = self.vmis.get(*key)
        if vmi is None or vmi.status is None or vmi.status.nodeName != self._node:
            self._empty.pop(key, None)
            return None
        unreported = self._unreported(vmi)
        empty = await self._without_processes(key, unreported)
        pod = self._pod_of(vmi)
        machine = self._tracked.get(pod.metadata.uid or "") if pod else None
        now = datetime.now(UTC), time.monotonic()
        seen = ObservedLauncher(vmi, pod, *now, kvm=self._kvm(), unreported=unreported, empty=empty)
        if machine is None:
            return seen
        launcher = machine.launcher
        return replace(
            seen,
            state=launcher.state,
            state_seconds=seen.clock - launcher.since,
            silent_seconds=launcher.silent_seconds,
            silence=launcher.trouble,
            cut_off=launcher.cut_off,
            resources=machine.resources,
            synced=machine.synced,
            synced_at=machine.synced_at,
            busy=machine.busy,
            trouble=machine.trouble,
            retry_at=machine.retry_at,
            tried=machine.tried,
            minor_since=machine.minor_since,
        )

    def _unreported(self, vmi: VirtualMachineInstance) -> frozenset[str]:
        """See `ObservedLauncher.unreported`. Empty until the pods of this node are synced."""
        here = [uid for uid, node in may_run_qemu(vmi).items() if node == self._node] if self.pods.is_synced else []
        found = {uid: next(iter(self.pods.by("uid", uid)), None) for uid in here}
        return frozenset(
            uid for uid, pod in found.items() if pod is None or (pod.status.phase in END_PHASES and not has_ended(pod))
        )

    async def _without_processes(self, key: Key, uids: frozenset[str]) -> frozenset[str]:
        """Those pods without processes, now and at least CONFIRM_SECONDS ago."""
        before = self._empty.pop(key, {})
        if not uids:
            return frozenset()
        now, since = time.monotonic(), {}
        for uid in uids:
            if not await asyncio.to_thread(self._any_alive, uid):
                since[uid] = before.get(uid, now)
        self._empty[key] = since
        return frozenset(uid for uid, at in since.items() if now - at >= CONFIRM_SECONDS)

    def plan(self, observed: ObservedLauncher) -> Sequence[Action | RequeueAfter]:
        """See `plan`."""
        return plan(observed)

    # ---- applying --------------------------------------------------------------------------------------------------

    async def apply(self, observed: ObservedLauncher, action: Action) -> None:
        """Apply one action."""
        machine = self._tracked.get((observed.pod.metadata.uid if observed.pod else "") or "")
        match action:
            case PatchVmi():
                await self._write(observed, action, machine)
            case RecordEventOnce(event):
                if machine is not None and not machine.told:
                    machine.told = True
                    self._events(observed.vmi, (event,))
            case DeferWrite(since):
                if machine is not None:
                    machine.minor_since = since
            case SetUp(sync):
                if machine is not None and not machine.busy:
                    work = self._set_up(observed, machine, sync)
                    machine.task = self._tasks.start("set-up", work, **log.about(observed.vmi))
            case _:
                assert_never(action)

    async def _write(self, observed: ObservedLauncher, action: PatchVmi, machine: TrackedVm | None) -> None:
        meta = observed.vmi.metadata
        key = (meta.namespace or "", meta.name or "")
        final = action.patch.body["status"].get("phase") in names.FINAL_PHASES
        if machine is not None and not final and (pause := machine.write_in(observed.clock)):
            self.queue.add_after(key, pause)
            return
        if machine is not None:
            machine.writes.append(observed.clock)
        try:
            self.vmis.learn(await self._kube.patch(VirtualMachineInstance, *key, action.patch.body))
        except Conflict:
            self.queue.add_after(key, 0.1)  # changed by another client: the cache will catch up
            return
        except ApiUnavailable as error:
            self.log.warning(
                "API server unavailable, retrying",
                why=error.message,
                again_in=API_SECONDS,
                **log.about(observed.vmi),
            )
            self.queue.add_after(key, API_SECONDS)
            return
        except NotFound:
            return
        if phase := action.patch.body["status"].get("phase"):
            self.log.info("VMI phase changed", phase=phase, **log.about(observed.vmi))
        self._events(observed.vmi, action.events)

    def _events(self, vmi: VirtualMachineInstance, events: Sequence[EventText]) -> None:
        for reason, message, type in events:
            self._tasks.start("event", self._kube.event(vmi, reason, message, type), **log.about(vmi))

    async def _set_up(self, observed: ObservedLauncher, machine: TrackedVm, sync: bool) -> None:
        began = time.monotonic()
        vmi = observed.vmi
        try:
            assert observed.pod is not None
            before = machine.resources.pending if machine.resources is not None else {}
            machine.resources = await self._node_setup.set_up(vmi, observed.pod, machine.launcher, machine.resources)
            pending = machine.resources.pending
            if sync or pending != before:
                nics = interface_status.messages(vmi, machine.resources.made)
                await self._start_limiter.take(machine.launcher.sync(sync_request.build(vmi, nics)))
                machine.synced_at = time.monotonic()
            machine.synced = digest(observed.vmi, observed.pod)
            if pending:
                raise NicsPending(pending)
            if await self._is_repeated(observed):
                raise NoProgress(sync)
            machine.trouble, machine.failures, machine.retry_at = None, 0, 0.0
            SETUP_SECONDS.observe(time.monotonic() - began)
            self.log.info(
                "Set up the VM",
                seconds=round(time.monotonic() - began, 3),
                synced=sync,
                **log.about(vmi),
            )
        except HyperletError as error:
            self._note(observed, machine, error)
        except Exception as error:
            self.log.exception("Unhandled exception while setting up the VM", **log.about(observed.vmi))
            self._note(observed, machine, HyperletError(f"{type(error).__name__}: {error}"))
        finally:
            machine.task = None
            self.queue.add((observed.vmi.metadata.namespace or "", observed.vmi.metadata.name or ""))

    async def _is_repeated(self, observed: ObservedLauncher) -> bool:
        """Whether the next plan would repeat the setup with the same inputs: it had no effect."""
        assert observed.pod is not None
        now = await self.observe((observed.vmi.metadata.namespace or "", observed.vmi.metadata.name or ""))
        if now is None or now.pod is None or setup_key(now.vmi, now.pod) != setup_key(observed.vmi, observed.pod):
            return False
        return any(isinstance(action, SetUp) for action in plan(replace(now, busy=False, retry_at=0.0, trouble=None)))

    def _note(self, observed: ObservedLauncher, machine: TrackedVm, error: HyperletError) -> None:
        machine.failures += 1
        pause = backoff.delay(machine.failures, FIRST_PAUSE, LONGEST_PAUSE)
        reason = error.reason
        if isinstance(error, PullRefused):
            pause = error.again_in
            if machine.failures > 1:
                reason = names.REASON_IMAGE_PULL_BACKOFF
        FAILURES.labels(reason).inc()
        machine.retry_at = time.monotonic() + pause
        if observed.pod is not None:
            machine.tried = setup_key(observed.vmi, observed.pod)
        permanent = isinstance(error, SyncRefused) and error.permanent
        # Expected for a while: a starting launcher, or a network being attached.
        quiet = 2 if isinstance(error, NicsPending) else 5
        if (
            not isinstance(error, LauncherUnavailable | InterfaceMissing | NicsPending | NoProgress)
            or machine.failures > quiet
        ):
            machine.trouble = Problem(reason, error.message, permanent)
        self.log.warning(
            "The VM is running, interfaces are still pending"
            if isinstance(error, NicsPending)
            else "Could not set up the VM",
            why=error.message,
            failures=machine.failures,
            again_in=None if permanent else round(pause, 1),
            **log.about(observed.vmi),
        )

    async def close(self) -> None:
        """Close every connection. The VMs keep running."""
        await self._tasks.close()
        for machine in self._tracked.values():
            if machine.resources is not None:
                machine.resources.close()
        for launcher in {*self._closing, *(machine.launcher for machine in self._tracked.values())}:
            self._tasks.start("disconnect", launcher.close(), pod_uid=launcher.pod_uid)
        self._closing.clear()
        self._tracked.clear()
        await self._tasks.finish()

"""The controller of this pod's VM: carries out requests, tracks its state and publishes reports."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

from kit.tasks import BackgroundTasks
from launcher.domain_builder.answers import BuiltDomain
from launcher.domain_builder.process import BuildError, DomainBuilder, question_of
from launcher.guest.agent import GuestAgent
from launcher.hotplug import disk_resize
from launcher.hotplug.nic_hotplug import NicHotplug, infos_of
from launcher.hypervisor.connection import DomainEvent, DomainFacts, Hypervisor, HypervisorError
from launcher.hypervisor.domain_poller import DomainPoller
from launcher.hypervisor.domain_states import FinalState, end_of, is_panic, state_of
from launcher.hypervisor.qemu_watcher import QemuWatcher
from launcher.log import log, task_failed
from launcher.network.dhcp_service import DhcpError, DhcpService
from launcher.paths import Paths
from launcher.storage import qemu_locks
from launcher.vm.errors import OperationRefused
from launcher.vm.report_publisher import ReportPublisher
from launcher.vm.shutdown import ShutdownControl
from launcher.vm.state_files import StateFiles
from protos import launcher_pb2 as pb

EXPLAIN_SECONDS = 2.0
"""Time for libvirt to report how QEMU ended; shorter than the supervisor's."""

Connect = Callable[[Paths, Callable[[], None], Callable[[], None], Callable[[DomainEvent], None]], Hypervisor]
"""Creates the hypervisor; same arguments as `Hypervisor`."""


def _plain(disk: pb.DiskInfo) -> dict[str, Any]:
    return {"volume": disk.volume, "target": disk.target, "size": disk.size, "capacity": disk.capacity}


class VmController:
    """The VM's state. Runs in the event loop only; `self._lock` serializes Sync."""

    def __init__(self, paths: Paths, record: StateFiles, builder: DomainBuilder, connect: Connect = Hypervisor) -> None:
        self._record, self._builder = record, builder
        self.tasks = BackgroundTasks(task_failed)
        self.hypervisor = connect(paths, self._on_connected, lambda: None, self._on_event)
        """The connection to libvirt."""
        self._reports = ReportPublisher(self.tasks)
        self.agent = GuestAgent(self.hypervisor, self._reports.publish, self.tasks)
        """The guest agent's poller."""
        self._dhcp = DhcpService()
        self._nic_hotplug = NicHotplug(self.hypervisor, builder, self._dhcp)
        self._poller = DomainPoller(self.hypervisor, self._on_domain_facts, self.tasks)
        self._qemu = QemuWatcher(self._on_qemu_gone)
        self._power = ShutdownControl(self.hypervisor, lambda: self._report, lambda: self.final is not None)
        self._lock = asyncio.Lock()
        self._saved: dict[str, Any] = {}
        self._domain = ""
        self._started = False
        self._panicked = False
        self._early_ends: list[FinalState] = []
        """libvirt reported the end before `create` returned."""
        self._unfinished: pb.SyncRequest | None = None
        """The last server's request, which may be incomplete."""
        self.final: FinalState | None = None
        self.has_screen = True
        """Whether the domain has a video device, as far as known."""
        self.delivered = asyncio.Event()
        """A client has received the final report."""

    # -- lifecycle

    async def run(self) -> None:
        """Keep the connection to libvirt. Never returns."""
        await self.hypervisor.keep_connected()

    async def close(self) -> None:
        """Cancel the background tasks and wait for their end. The VM keeps running."""
        await self.tasks.close()

    def restore(self) -> None:
        """Restore the state saved by the last server, if any."""
        saved = self._record.load()
        request = self._record.load_request()
        if not saved or request is None:
            return
        self._domain, self._started = saved["domain"], saved["started"]
        self._report.vmi_uid = saved["uid"]
        self._report.qemu_pid = saved["qemu_pid"]
        self._report.disks.extend(pb.DiskInfo(**disk) for disk in saved["disks"])
        self._nic_hotplug.unplugging.update(saved["unplugging"])
        self._saved = saved
        if saved["final"]:
            self.final = FinalState(**saved["final"])
            self._reports.set_state(self.final.state, self.final.reason, self.final.message)
        if not self._started or self.final is not None:
            return
        self._qemu.watch(saved["qemu_pid"])
        self._unfinished = request
        try:
            self._nic_hotplug.serve(request, saved["dhcp_options"])
        except (BuildError, DhcpError) as error:
            log("error", "the guest gets no DHCP replies until the next Sync", error=str(error))

    def _save(self) -> None:
        self._saved |= {
            "uid": self._report.vmi_uid,
            "disks": [_plain(disk) for disk in self._report.disks],
            "domain": self._domain,
            "started": self._started,
            "qemu_pid": self._report.qemu_pid,
            "unplugging": sorted(self._nic_hotplug.unplugging),
            "final": self.final.as_dict() if self.final else None,
        }
        self._record.save(self._saved)

    @property
    def _report(self) -> pb.Report:
        return self._reports.current

    # -- requests of the handler

    async def sync(self, request: pb.SyncRequest) -> pb.Report:
        """Start the domain, or update the running one. Raises OperationRefused, BuildError, DhcpError, HypervisorError.

        A cancelled call continues in the background: the next call waits for it.
        """
        return await self.tasks.complete("sync", self._sync(request))

    async def _sync(self, request: pb.SyncRequest) -> pb.Report:
        uid = request.vmi_uid
        if not uid:
            # Not INVALID_ARGUMENT, after which an older handler would give up: it will be updated.
            raise OperationRefused("FAILED_PRECONDITION", "vmi_uid: required; update the handler of this node")
        async with self._lock:
            if self._report.vmi_uid and uid != self._report.vmi_uid:
                owner = self._report.vmi_uid
                raise OperationRefused("FAILED_PRECONDITION", f"this launcher belongs to the VMI with UID {owner}")
            if not self._started:
                self._power.refuse_when_stopping()
            self._report.vmi_uid = uid
            if self.final is None and not self._started:
                await self._start(request)
            elif self.final is None and not self._power.stopping:
                await self._rewire(request)
            return self._report

    async def _start(self, request: pb.SyncRequest) -> None:
        self._reports.set_state(pb.DOMAIN_STATE_STARTING, "Starting", "")
        try:
            plan: BuiltDomain = await self._builder.build(question_of(request))
            self._domain = plan["domain"]
            self._saved = {"disks": plan["disks"], "dhcp_options": plan["dhcp_options"]}
            del self._report.disks[:]
            self._report.disks.extend(pb.DiskInfo(**disk) for disk in plan["disks"])
            disk_resize.note(self._report.disks, request.claims)
            self._record.save_request(request)
            self._save()
            self._nic_hotplug.serve(request, plan["dhcp_options"])
            self._power.refuse_when_stopping()
            self._early_ends.clear()
            await self._create(plan)
        except (BuildError, DhcpError, HypervisorError, OperationRefused) as error:
            self._dhcp.close()
            self._reports.set_state(pb.DOMAIN_STATE_NONE, "StartFailed", str(error))
            raise
        self._started = True
        if self._early_ends:
            self._end(self._early_ends[0])
            return
        with contextlib.suppress(HypervisorError):
            await self._refresh()
        if self._power.stopping:
            self._request_shutdown()

    async def _create(self, plan: BuiltDomain) -> None:
        """Start the domain. Raises HypervisorError, which names volume and claim of a disk that is in use."""
        try:
            await self.hypervisor.create(plan["xml"], plan["paused"])
        except HypervisorError as error:
            locked = await asyncio.to_thread(qemu_locks.locked, plan["claims"])
            if locked:
                raise type(error)(qemu_locks.in_use(locked)) from error
            raise

    async def _rewire(self, request: pb.SyncRequest) -> None:
        """Update NICs and grow disks of the running domain. Raises BuildError, HypervisorError."""
        self._unfinished = None
        self._record.save_request(request)
        try:
            try:
                await self._nic_hotplug.follow(self._domain, request, self._saved["dhcp_options"], self._refresh)
            finally:
                disks = list(self._report.disks)
                await disk_resize.follow(self.hypervisor, self._builder, self._domain, request, disks, self._note_disk)
        except (BuildError, HypervisorError):
            if self.final is None:
                raise
        finally:
            self._save()

    def _note_disk(self, disk: pb.DiskInfo) -> None:
        for known in self._report.disks:
            if known.volume == disk.volume:
                known.CopyFrom(disk)
        self._reports.publish()

    async def _finish(self) -> None:
        """Complete the last server's request."""
        async with self._lock:
            if self._unfinished is None or self.final is not None or self._power.stopping:
                return
            try:
                await self._rewire(self._unfinished)
            except (BuildError, HypervisorError) as error:
                log("warning", "network interfaces or disks are not updated until the next Sync", error=str(error))

    async def watch(self) -> AsyncIterator[pb.Report]:
        """The report now and after every change; ends after the final one."""
        async with contextlib.aclosing(self._reports.follow()) as reports:
            async for report in reports:
                final = self.final is not None
                yield report
                if final:
                    # Resumed: gRPC has accepted the report.
                    self.delivered.set()
                    return

    async def shutdown(self, grace: float) -> None:
        """Ask the guest to shut down, and kill it after `grace` seconds."""
        if self._started and self.final is None:
            self.tasks.start("force-off", self._power.force_off(self._domain, grace), domain=self._domain)
            self.stop()

    def stop(self) -> None:
        """The pod is being terminated: shut down the guest. The supervisor enforces the grace period."""
        if not self._power.stopping:
            self._power.stopping = True
            self._builder.discard()
            if self._started:
                self._request_shutdown()

    def _request_shutdown(self) -> None:
        self.tasks.start("shutdown", self._power.request_shutdown(self._domain), domain=self._domain)

    async def pause(self, paused: bool) -> pb.Report:
        """Pause or resume the vCPUs. Raises OperationRefused, HypervisorError."""
        domain = self.running()
        await (self.hypervisor.suspend if paused else self.hypervisor.resume)(domain)
        return await self.poll()

    # -- used by launcher.guest.operations

    def running(self) -> str:
        """The domain's name. Raises OperationRefused if it is not running."""
        if not self._started or self.final is not None:
            raise OperationRefused("FAILED_PRECONDITION", "the virtual machine is not running")
        return self._domain

    async def poll(self) -> pb.Report:
        """The report with libvirt's current state. Raises HypervisorError."""
        await self._refresh()
        return self._report

    def remember(self, name: str, value: float) -> None:
        """Save a number for the next server; `recall` reads it."""
        self._saved[name] = value
        self._save()

    def recall(self, name: str) -> float:
        """The number saved under this name; 0 if none."""
        value = self._saved.get(name)
        return float(value) if isinstance(value, int | float) else 0.0

    # -- libvirt's events and state

    def _on_connected(self) -> None:
        self._refresh_soon()
        if self._unfinished is not None:
            self.tasks.start("finish-sync", self._finish(), domain=self._domain)

    def _refresh_soon(self) -> None:
        if self._domain:
            self._poller.poll_soon(self._domain)

    async def _refresh(self) -> None:
        await self._poller.poll(self._domain)

    def _on_event(self, event: DomainEvent) -> None:
        if event.kind == "lifecycle":
            self._panicked = self._panicked or is_panic(event.event, event.detail)
            final = end_of(event.event, event.detail, self._panicked, self._power.stopping, self._power.forced)
            if final and self._started:
                self._end(final)
                return
            if final:
                self._early_ends.append(final)
        self._refresh_soon()

    def _on_domain_facts(self, facts: DomainFacts | None) -> None:
        if self.final is not None:
            return
        if facts is not None:
            self._apply(facts)
        elif self._started:
            # libvirt removes a domain before it sends the event with the cause.
            asyncio.get_running_loop().call_later(EXPLAIN_SECONDS, self._end_unexplained)

    def _apply(self, facts: DomainFacts) -> None:
        report, domain = self._report, facts.description
        report.accelerator, report.machine = domain.accelerator, domain.machine
        if facts.qemu_pid != report.qemu_pid or not self._started:
            self._started = True
            report.qemu_pid = facts.qemu_pid
            self._save()
            self._qemu.watch(facts.qemu_pid)
        self._nic_hotplug.live, self._nic_hotplug.free_ports = domain.nics, domain.free_ports
        self.has_screen = domain.has_screen
        del report.nics[:]
        report.nics.extend(infos_of(domain.nics))
        report.agent_connected = domain.agent_connected
        self.agent.connected(self._domain, domain.agent_connected)
        state, reason = state_of(facts.state, facts.reason)
        self._reports.set_state(state, reason, "")

    def _on_qemu_gone(self) -> None:
        pause = EXPLAIN_SECONDS if self.hypervisor.is_connected else 0
        asyncio.get_running_loop().call_later(pause, self._end_unexplained)

    def _end_unexplained(self) -> None:
        if self.final is None:
            self._end(FinalState.unknown(self._power.stopping, self._power.forced))

    def _end(self, final: FinalState) -> None:
        if self.final is not None:
            return
        self.final = final
        self._dhcp.close()
        del self._report.nics[:]
        self.agent.connected(self._domain, False)
        self._report.agent_connected = False
        self._save()
        self._reports.set_state(final.state, final.reason, final.message)

"""The one virtual machine of this pod: what it is told, what becomes of it, and the report of both."""

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator
from typing import Any

from launcher.agent import Agent
from launcher.builder import Builder, BuildError
from launcher.cards import Cards, infos_of, nic_facts
from launcher.dhcp_service import DhcpError, DhcpService
from launcher.hypervisor import DomainFacts, Event, Hypervisor, HypervisorError
from launcher.log import log
from launcher.memory import release_code_pages
from launcher.paths import Paths
from launcher.record import Record
from launcher.states import Final, final_of, is_panic, state_of
from protos import launcher_pb2 as pb

PRESS_SECONDS = (1.0, 1.0, 2.0)
"""Pauses after the first presses of the power button: a guest that is still booting misses them. Then LATER_SECONDS."""
LATER_SECONDS = 5.0
EXPLAIN_SECONDS = 2.0
"""What libvirt has to say how QEMU ended; less than the supervisor waits."""
SETTLED_SECONDS = 2.0
"""After the start of QEMU, or of this server, all is as it will stay."""
COALESCE_SECONDS = 0.05
_MESSAGE_BYTES = 1024


class Refused(Exception):
    """What was asked does not fit the state. `code` is a gRPC status name."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Machine:
    """State of the VM. Everything runs in the event loop; `self._lock` orders what must not overlap."""

    def __init__(self, paths: Paths, record: Record, builder: Builder) -> None:
        self._paths, self._record, self._builder = paths, record, builder
        self._hypervisor = Hypervisor(paths, self._on_connected, lambda: None, self._on_event)
        self._agent = Agent(self._hypervisor, self._publish)
        self._dhcp = DhcpService()
        self._cards = Cards(self._hypervisor, builder, self._dhcp)
        self._lock = asyncio.Lock()
        self._refreshing = asyncio.Lock()
        self._changed = asyncio.Condition()
        self._tasks: set[asyncio.Task[None]] = set()
        self._report = pb.Report()
        self._published = pb.Report()
        self._saved: dict[str, Any] = {}
        self._domain = ""
        self._started = False
        self._panicked = False
        self._forced = False
        self._early_ends: list[Final] = []
        """libvirt told of the end before it told of the start."""
        self._refresh_wanted = False
        self._unfinished: pb.SyncRequest | None = None
        """What the last server was told; it may have been ended before all was done."""
        self._looks = self._latest_look = 0
        """Looks at the domain that were begun, and the latest one that was taken for true."""
        self._stopping = False
        self._watched_pid = 0
        self.final: Final | None = None
        self.delivered = asyncio.Event()
        """Somebody has been told the end."""

    # -- life

    async def run(self) -> None:
        """Keeps the connection to libvirt. Never returns."""
        await self._hypervisor.keep_connected()

    def restore(self) -> None:
        """Knows again what the last server knew, if there was one."""
        saved = self._record.load()
        request = self._record.load_request()
        if not saved or request is None:
            return
        self._domain, self._started = saved["domain"], saved["started"]
        self._report.vmi_uid = saved["uid"]
        self._report.qemu_pid = saved["qemu_pid"]
        self._report.disks.extend(pb.DiskInfo(**disk) for disk in saved["disks"])
        self._saved = saved
        if saved["final"]:
            self.final = Final(**saved["final"])
            self._set_state(self.final.state, self.final.reason, self.final.message)
        if not self._started or self.final is not None:
            return
        self._watch_qemu(saved["qemu_pid"])
        self._unfinished = request
        try:
            self._cards.serve(request, saved["dhcp_options"])
        except (BuildError, DhcpError) as error:
            log("error", "the guest gets no DHCP replies until the next Sync", error=str(error))

    def _save(self) -> None:
        self._saved |= {
            "uid": self._report.vmi_uid,
            "domain": self._domain,
            "started": self._started,
            "qemu_pid": self._report.qemu_pid,
            "final": self.final.as_dict() if self.final else None,
        }
        self._record.save(self._saved)

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # -- what the handler asks

    async def sync(self, request: pb.SyncRequest) -> pb.Report:
        """Starts the domain if it is not there. Raises Refused, BuildError, DhcpError, HypervisorError.

        A client that gives up does not stop what it has begun: the next call waits for it.
        """
        work = asyncio.get_running_loop().create_task(self._sync(request))
        return await asyncio.shield(work)

    async def _sync(self, request: pb.SyncRequest) -> pb.Report:
        uid = _uid(request.vmi)
        async with self._lock:
            if self._report.vmi_uid and uid != self._report.vmi_uid:
                owner = self._report.vmi_uid
                raise Refused("FAILED_PRECONDITION", f"this launcher belongs to the VMI with UID {owner}")
            if not self._started:
                self._refuse_when_stopping()
            self._report.vmi_uid = uid
            if self.final is None and not self._started:
                await self._start(request)
            elif self.final is None and not self._stopping:
                await self._rewire(request)
            return self._report

    async def _start(self, request: pb.SyncRequest) -> None:
        self._set_state(pb.DOMAIN_STATE_STARTING, "Starting", "")
        try:
            plan = await self._builder.build(_build_request(request))
            self._domain = plan["domain"]
            self._saved = {"disks": plan["disks"], "dhcp_options": plan["dhcp_options"]}
            del self._report.disks[:]
            self._report.disks.extend(pb.DiskInfo(**disk) for disk in plan["disks"])
            self._record.save_request(request)
            self._save()
            self._cards.serve(request, plan["dhcp_options"])
            self._refuse_when_stopping()
            self._early_ends.clear()
            await self._hypervisor.create(plan["xml"], plan["paused"])
        except (BuildError, DhcpError, HypervisorError, Refused) as error:
            self._dhcp.close()
            self._set_state(pb.DOMAIN_STATE_NONE, "StartFailed", str(error))
            raise
        self._started = True
        if self._early_ends:
            self._end(self._early_ends[0])
            return
        with contextlib.suppress(HypervisorError):
            await self._refresh()
        if self._stopping:
            self._spawn(self._press_power_button())

    async def _rewire(self, request: pb.SyncRequest) -> None:
        """Network cards as they are wanted now. Raises BuildError, HypervisorError."""
        self._unfinished = None
        self._record.save_request(request)
        try:
            await self._cards.follow(self._domain, request, self._saved["dhcp_options"], self._refresh)
        except (BuildError, HypervisorError):
            if self.final is None:
                raise
        finally:
            self._save()

    async def _finish(self) -> None:
        """What the last server has left undone."""
        async with self._lock:
            if self._unfinished is None or self.final is not None or self._stopping:
                return
            try:
                await self._rewire(self._unfinished)
            except (BuildError, HypervisorError) as error:
                log("warning", "network cards are not as they should be until the next Sync", error=str(error))

    def _refuse_when_stopping(self) -> None:
        if self._stopping:
            raise Refused("FAILED_PRECONDITION", "the pod is being ended")

    async def watch(self) -> AsyncIterator[pb.Report]:
        """The report now, then after every change; ends after the final one."""
        sequence = -1
        while True:
            async with self._changed:
                while self._report.sequence == sequence:
                    await self._changed.wait()
            sequence, final = self._report.sequence, self.final is not None
            yield self._report
            if final:
                # Resumed: gRPC has taken the report.
                self.delivered.set()
                return
            await asyncio.sleep(COALESCE_SECONDS)

    async def shutdown(self, grace: float) -> None:
        """Has the guest shut down, and ends it after `grace` seconds."""
        if self._started and self.final is None:
            self._spawn(self._force_off(grace))
            self.stop()

    def stop(self) -> None:
        """The pod is being ended: the guest is to shut down. The supervisor owns the deadline."""
        if not self._stopping:
            self._stopping = True
            self._builder.discard()
            if self._started:
                self._spawn(self._press_power_button())

    async def _press_power_button(self) -> None:
        with_agent = False
        pauses = [*PRESS_SECONDS]
        while self.final is None:
            try:
                if self._report.state == pb.DOMAIN_STATE_PAUSED:
                    await self._hypervisor.resume(self._domain)
                await self._hypervisor.power_button(self._domain, with_agent)
            except HypervisorError as error:
                log("info", "cannot ask the guest to shut down, trying again", error=str(error))
                await asyncio.sleep(0.2)
                continue
            await asyncio.sleep(pauses.pop(0) if pauses else LATER_SECONDS)
            with_agent = self._report.agent_connected and not with_agent

    async def _force_off(self, grace: float) -> None:
        await asyncio.sleep(grace)
        if self.final is None:
            self._forced = True
            with contextlib.suppress(HypervisorError):
                await self._hypervisor.destroy(self._domain)

    async def pause(self, paused: bool) -> pb.Report:
        """Stops or starts the vCPUs. Raises Refused, HypervisorError."""
        domain = self.running()
        await (self._hypervisor.suspend if paused else self._hypervisor.resume)(domain)
        return await self.look()

    # -- what launcher.verbs needs

    @property
    def hypervisor(self) -> Hypervisor:
        """The connection to libvirt."""
        return self._hypervisor

    @property
    def agent(self) -> Agent:
        """Who asks the guest's agent."""
        return self._agent

    def running(self) -> str:
        """The domain's name for libvirt. Raises Refused if it does not run."""
        if not self._started or self.final is not None:
            raise Refused("FAILED_PRECONDITION", "the virtual machine does not run")
        return self._domain

    async def look(self) -> pb.Report:
        """The report, as libvirt says it now. Raises HypervisorError."""
        await self._refresh()
        return self._report

    def remember(self, name: str, value: float) -> None:
        """Keeps a number for the next server; `recall` gives it."""
        self._saved[name] = value
        self._save()

    def recall(self, name: str) -> float:
        """What was remembered under this name; 0 if nothing was."""
        value = self._saved.get(name)
        return float(value) if isinstance(value, int | float) else 0.0

    # -- what libvirt says

    def _on_connected(self) -> None:
        self._refresh_soon()
        if self._unfinished is not None:
            self._spawn(self._finish())

    def _refresh_soon(self) -> None:
        """One look at the domain for however many events: a guest can cause as many as it likes."""
        if self._domain and not self._refresh_wanted:
            self._refresh_wanted = True
            self._spawn(self._refresh_now())

    async def _refresh_now(self) -> None:
        async with self._refreshing:
            self._refresh_wanted = False
            with contextlib.suppress(HypervisorError):
                await self._refresh()
            await asyncio.sleep(COALESCE_SECONDS)

    def _on_event(self, event: Event) -> None:
        if event.kind == "lifecycle":
            self._panicked = self._panicked or is_panic(event.event, event.detail)
            final = final_of(event.event, event.detail, self._panicked, self._stopping, self._forced)
            if final and self._started:
                self._end(final)
                return
            if final:
                self._early_ends.append(final)
        self._refresh_soon()

    async def _refresh(self) -> None:
        self._looks += 1
        look = self._looks
        facts = await self._hypervisor.facts(self._domain)
        if self.final is not None or look < self._latest_look:
            return  # over, or a look that began later has been quicker
        self._latest_look = look
        if facts is None:
            if self._started:
                # libvirt forgets a domain before it sends the event that says how it ended.
                asyncio.get_running_loop().call_later(EXPLAIN_SECONDS, self._end_unexplained)
            return
        self._apply(facts)

    def _apply(self, facts: DomainFacts) -> None:
        report = self._report
        report.accelerator, report.machine = facts.accelerator, facts.machine
        if facts.qemu_pid != report.qemu_pid or not self._started:
            self._started = True
            report.qemu_pid = facts.qemu_pid
            self._save()
            self._watch_qemu(facts.qemu_pid)
        self._cards.live = facts.nics
        del report.nics[:]
        report.nics.extend(infos_of(facts.nics))
        report.agent_connected = facts.agent_connected
        self._agent.connected(self._domain, facts.agent_connected)
        state, reason = state_of(facts.state, facts.reason)
        self._set_state(state, reason, "")

    def _watch_qemu(self, pid: int) -> None:
        """Learns QEMU's end from the kernel too: libvirt's daemon may be down at that moment."""
        if not pid or pid == self._watched_pid:
            return
        try:
            handle = os.pidfd_open(pid)
        except OSError:
            return
        self._watched_pid = pid
        loop = asyncio.get_running_loop()
        loop.call_later(SETTLED_SECONDS, release_code_pages)

        def ended() -> None:
            loop.remove_reader(handle)
            os.close(handle)
            loop.call_later(EXPLAIN_SECONDS if self._hypervisor.is_connected else 0, self._end_unexplained)

        loop.add_reader(handle, ended)

    def _end_unexplained(self) -> None:
        if self.final is None:
            self._end(Final.unknown(self._stopping, self._forced))

    def _end(self, final: Final) -> None:
        if self.final is not None:
            return
        self.final = final
        self._dhcp.close()
        del self._report.nics[:]
        self._agent.connected(self._domain, False)
        self._report.agent_connected = False
        self._save()
        self._set_state(final.state, final.reason, final.message)

    # -- report

    def _set_state(self, state: pb.DomainState.ValueType, reason: str, message: str) -> None:
        self._report.state, self._report.reason = state, reason
        self._report.message = message.encode()[:_MESSAGE_BYTES].decode(errors="ignore")
        self._publish()

    def _publish(self, guest: pb.GuestInfo | None = None) -> None:
        """Tells the watchers that the report has changed. A new message: gRPC may still be sending the last one."""
        report = pb.Report()
        report.CopyFrom(self._report)
        if guest is not None:
            report.guest.CopyFrom(guest)
        if not report.agent_connected:
            report.ClearField("guest")
        if report == self._published:
            return
        report.sequence += 1
        self._report = report
        self._published = pb.Report()
        self._published.CopyFrom(report)
        self._spawn(self._notify())

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()


def _uid(vmi: bytes) -> str:
    try:
        uid = json.loads(vmi)["metadata"]["uid"]
    except (ValueError, LookupError, TypeError):
        uid = None
    if not isinstance(uid, str) or not uid:
        raise Refused("INVALID_ARGUMENT", "metadata.uid: missing, or the VMI is no JSON object")
    return uid


def _build_request(request: pb.SyncRequest) -> dict[str, Any]:
    return {
        "vmi": request.vmi.decode(errors="replace"),
        "nics": nic_facts(request.nics),
    }

"""Maps libvirt's states and events to the launcher protocol.

Sources: enums virDomainState, virDomainPausedReason, virDomainEventType and its details, in libvirt-domain.h. The
numbers are part of libvirt's ABI; they are repeated here to avoid importing the binding.
"""

from dataclasses import asdict, dataclass
from typing import Any

from protos import launcher_pb2 as pb

_RUNNING, _BLOCKED, _PAUSED, _SHUTDOWN, _SHUTOFF, _CRASHED, _PMSUSPENDED = range(1, 8)
_PAUSED_IO_ERROR, _PAUSED_SHUTTING_DOWN, _PAUSED_STARTING_UP = 5, 8, 11
_EVENT_STOPPED, _EVENT_CRASHED = 5, 8
_STOPPED_SHUTDOWN, _STOPPED_DESTROYED, _STOPPED_CRASHED, _STOPPED_MIGRATED, _STOPPED_SAVED, _STOPPED_FAILED = range(6)
TERMINATED = "Terminated"
"""Reason of a requested shutdown: the pod is being terminated (api.disruption has the cause)."""
_RUNNING_REASONS = {1: "Booted", 5: "Unpaused", 9: "Woken"}


@dataclass(frozen=True, slots=True)
class FinalState:
    """The end of the VM. `phase` is the VMI's: Succeeded or Failed."""

    phase: str
    reason: str
    message: str

    @property
    def state(self) -> pb.DomainState.ValueType:
        """The state in the report."""
        return pb.DOMAIN_STATE_CRASHED if self.phase == "Failed" else pb.DOMAIN_STATE_SHUTOFF

    def as_dict(self) -> dict[str, Any]:
        """For the state file."""
        return asdict(self)

    @classmethod
    def unknown(cls, told: bool, forced: bool) -> "FinalState":
        """QEMU has exited without an event of libvirt: unless requested, it was killed."""
        if forced:
            return cls("Succeeded", "ForceOff", "the guest did not shut down within its grace period")
        if told:
            return cls("Succeeded", TERMINATED, "the guest shut down")
        return cls("Failed", "Crashed", "QEMU exited, and libvirt reported no reason")


def is_panic(event: int, _detail: int) -> bool:
    """Whether a lifecycle event reports a guest panic; a STOPPED event follows."""
    return event == _EVENT_CRASHED


def end_of(event: int, detail: int, panicked: bool, told: bool, forced: bool) -> FinalState | None:
    """The final state reported by a lifecycle event; None if it is not the end.

    `told`: the pod or a user requested the shutdown; `forced`: after the grace period.
    """
    if event != _EVENT_STOPPED:
        return None
    if forced or (told and detail != _STOPPED_SHUTDOWN):
        return FinalState("Succeeded", "ForceOff", "the guest did not shut down within its grace period")
    if told or (detail == _STOPPED_SHUTDOWN and not panicked):
        return FinalState("Succeeded", TERMINATED if told else "Shutdown", "the guest shut down")
    if panicked:
        return FinalState("Failed", "Panicked", "the guest's kernel panicked")
    if detail == _STOPPED_SAVED:
        return FinalState("Succeeded", "Saved", "the guest was saved")
    if detail == _STOPPED_MIGRATED:
        return FinalState("Succeeded", "Migrated", "the guest was migrated")
    if detail == _STOPPED_DESTROYED:
        return FinalState("Failed", "Destroyed", "the domain was destroyed")
    return FinalState("Failed", "Crashed", "QEMU crashed or was killed")


def state_of(state: int, reason: int) -> tuple[pb.DomainState.ValueType, str]:
    """The protocol's state and reason for a virDomainState and its reason."""
    if state == _PAUSED and reason == _PAUSED_IO_ERROR:
        return pb.DOMAIN_STATE_IO_ERROR, "IOError"
    if state == _PAUSED and reason == _PAUSED_STARTING_UP:
        return pb.DOMAIN_STATE_STARTING, "Starting"
    if state == _SHUTDOWN or (state == _PAUSED and reason == _PAUSED_SHUTTING_DOWN):
        return pb.DOMAIN_STATE_SHUTDOWN, "ShuttingDown"
    if state == _PAUSED:
        return pb.DOMAIN_STATE_PAUSED, "Paused"
    if state == _CRASHED:
        return pb.DOMAIN_STATE_CRASHED, "Crashed"
    if state == _SHUTOFF:
        return pb.DOMAIN_STATE_SHUTOFF, "Shutdown"
    if state == _PMSUSPENDED:
        return pb.DOMAIN_STATE_RUNNING, "Suspended"
    return pb.DOMAIN_STATE_RUNNING, _RUNNING_REASONS.get(reason, "Running")

"""libvirt's numbers for states and events, in the words of our protocol.

Sources: enums virDomainState, virDomainPausedReason, virDomainEventType and its details, in libvirt-domain.h. The
numbers are part of libvirt's ABI; taking them from the binding would make every user of this module import it.
"""

from dataclasses import asdict, dataclass
from typing import Any

from protos import launcher_pb2 as pb

_RUNNING, _BLOCKED, _PAUSED, _SHUTDOWN, _SHUTOFF, _CRASHED, _PMSUSPENDED = range(1, 8)
_PAUSED_IO_ERROR, _PAUSED_SHUTTING_DOWN, _PAUSED_STARTING_UP = 5, 8, 11
_EVENT_STOPPED, _EVENT_CRASHED = 5, 8
_STOPPED_SHUTDOWN, _STOPPED_DESTROYED, _STOPPED_CRASHED, _STOPPED_MIGRATED, _STOPPED_SAVED, _STOPPED_FAILED = range(6)
TERMINATED = "Terminated"
"""The guest shut down because it was told to: the pod is being ended (api.disruption says why)."""
_RUNNING_REASONS = {1: "Booted", 5: "Unpaused", 9: "Woken"}


@dataclass(frozen=True, slots=True)
class FinalState:
    """How the VM ended. `phase` is the VMI's: Succeeded or Failed."""

    phase: str
    reason: str
    message: str

    @property
    def state(self) -> pb.DomainState.ValueType:
        """The state that the report carries."""
        return pb.DOMAIN_STATE_CRASHED if self.phase == "Failed" else pb.DOMAIN_STATE_SHUTOFF

    def as_dict(self) -> dict[str, Any]:
        """For the record."""
        return asdict(self)

    @classmethod
    def unknown(cls, told: bool, forced: bool) -> "FinalState":
        """QEMU is gone and libvirt has not said how: unless we had asked for it, something killed it."""
        if forced:
            return cls("Succeeded", "ForceOff", "the guest did not shut down within its grace period")
        if told:
            return cls("Succeeded", TERMINATED, "the guest shut down")
        return cls("Failed", "Crashed", "QEMU exited, and libvirt reported no reason")


def is_panic(event: int, _detail: int) -> bool:
    """Whether a lifecycle event says that the guest panicked; a STOPPED event follows it."""
    return event == _EVENT_CRASHED


def end_of(event: int, detail: int, panicked: bool, told: bool, forced: bool) -> FinalState | None:
    """The end that a lifecycle event tells of; None if it is not the end.

    `told`: the pod or a user asked for the shutdown; `forced`: and the grace period was over.
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
    """Our state and reason for a virDomainState and its reason."""
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

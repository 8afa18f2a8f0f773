import pytest

from launcher.hypervisor.domain_states import FinalState, end_of, is_panic, state_of
from protos import launcher_pb2 as pb

STOPPED, CRASHED = 5, 8


@pytest.mark.parametrize(
    ("detail", "panicked", "told", "forced", "expected"),
    [
        (0, False, False, False, ("Succeeded", "Shutdown")),
        (0, False, True, False, ("Succeeded", "Terminated")),
        (1, False, False, False, ("Failed", "Destroyed")),
        (1, False, True, True, ("Succeeded", "ForceOff")),
        (2, False, False, False, ("Failed", "Crashed")),
        (2, True, False, False, ("Failed", "Panicked")),
        (2, False, True, False, ("Succeeded", "ForceOff")),
        (3, False, False, False, ("Succeeded", "Migrated")),
        (4, False, False, False, ("Succeeded", "Saved")),
        (5, False, False, False, ("Failed", "Crashed")),
    ],
)
def test_final_state_of_stopped_events(
    detail: int, panicked: bool, told: bool, forced: bool, expected: tuple[str, str]
) -> None:
    final = end_of(STOPPED, detail, panicked, told, forced)
    assert final is not None
    assert (final.phase, final.reason) == expected
    assert (final.state == pb.DOMAIN_STATE_CRASHED) == (final.phase == "Failed")


def test_other_events_have_no_final_state() -> None:
    assert end_of(2, 0, False, False, False) is None
    assert end_of(CRASHED, 0, False, False, False) is None
    assert is_panic(CRASHED, 0) and not is_panic(STOPPED, 2)


def test_final_state_without_event() -> None:
    assert FinalState.unknown(told=False, forced=False).phase == "Failed"
    assert FinalState.unknown(told=True, forced=False).reason == "Terminated"
    assert FinalState.unknown(told=True, forced=True).reason == "ForceOff"


@pytest.mark.parametrize(
    ("state", "reason", "expected"),
    [
        (1, 1, (pb.DOMAIN_STATE_RUNNING, "Booted")),
        (2, 0, (pb.DOMAIN_STATE_RUNNING, "Running")),
        (3, 1, (pb.DOMAIN_STATE_PAUSED, "Paused")),
        (3, 5, (pb.DOMAIN_STATE_IO_ERROR, "IOError")),
        (3, 11, (pb.DOMAIN_STATE_STARTING, "Starting")),
        (3, 8, (pb.DOMAIN_STATE_SHUTDOWN, "ShuttingDown")),
        (4, 0, (pb.DOMAIN_STATE_SHUTDOWN, "ShuttingDown")),
        (7, 0, (pb.DOMAIN_STATE_RUNNING, "Suspended")),
    ],
)
def test_states(state: int, reason: int, expected: tuple[int, str]) -> None:
    assert state_of(state, reason) == expected

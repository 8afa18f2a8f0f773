from api import conditions
from api.kubevirt.vmi_status import VirtualMachineInstanceCondition as Condition

NOW, LONG_AGO = "2026-03-01T12:00:00Z", "2020-01-01T00:00:00Z"
READY = Condition(type="Ready", status="False", reason="A", message="old", lastTransitionTime=LONG_AGO)


def test_condition_keeps_its_time_until_its_status_changes() -> None:
    [same] = conditions.merged([READY], [conditions.make("Ready", False, "B")], (), NOW)
    assert same == {"type": "Ready", "status": "False", "reason": "B", "lastTransitionTime": LONG_AGO}
    [changed] = conditions.merged([READY], [conditions.make("Ready", True)], (), NOW)
    assert changed == {"type": "Ready", "status": "True", "lastTransitionTime": NOW}


def test_foreign_conditions_stay() -> None:
    foreign = Condition(type="Theirs", status="True")
    assert conditions.merged([foreign], [], (), NOW) == [{"type": "Theirs", "status": "True"}]


def test_dropped_condition_goes_unless_it_is_wanted() -> None:
    assert conditions.merged([READY], [], ("Ready",), NOW) == []
    assert len(conditions.merged([READY], [conditions.make("Ready", True)], ("Ready",), NOW)) == 1


def test_condition_without_a_time_gets_one_when_it_is_written() -> None:
    [written] = conditions.merged([Condition(type="Ready", status="True")], [conditions.make("Ready", True)], (), NOW)
    assert written["lastTransitionTime"] == NOW


def test_long_message_is_truncated() -> None:
    assert len(conditions.make("Ready", False, "A", "m" * 5000)["message"]) == conditions.MESSAGE_LIMIT

"""Validation of the environment of a call."""

from cni import invocation


def test_interface_fault_validates_device_names() -> None:
    assert not invocation.interface_fault("eth0") and not invocation.interface_fault("br-1.93")
    assert all(
        invocation.interface_fault(each) for each in ("", "a/b", "a:b", "a b", ".", "..", "x" * 16, "a\n", "a\0")
    )

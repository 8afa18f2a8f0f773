"""The KVM probe's program and structures."""

from handler.devices import kvm_probe


def test_kvm_program_and_structures():
    import ctypes

    assert ctypes.sizeof(kvm_probe._Sregs) == 312  # KVM_GET_SREGS is _IOR(KVMIO, 0x83, struct kvm_sregs): 0x138 bytes
    assert kvm_probe._PROGRAM.startswith(b"\xb9") and kvm_probe._PROGRAM.endswith(b"\xf4")

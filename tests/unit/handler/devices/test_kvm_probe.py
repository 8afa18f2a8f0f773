"""The KVM probe's program and structures."""

import asyncio
import os
from types import SimpleNamespace

import pytest

from handler.devices import kvm_probe
from tests.unit.tasklab import assert_cancels_caller


def test_kvm_program_and_structures():
    import ctypes

    assert ctypes.sizeof(kvm_probe._Sregs) == 312  # KVM_GET_SREGS is _IOR(KVMIO, 0x83, struct kvm_sregs): 0x138 bytes
    assert kvm_probe._PROGRAM.startswith(b"\xb9") and kvm_probe._PROGRAM.endswith(b"\xf4")


@pytest.mark.parametrize("hangs", [False, True])
async def test_cancelling_the_caller_of_a_probe_cancels_it(monkeypatch: pytest.MonkeyPatch, hangs: bool) -> None:
    ended = asyncio.Event()

    class Child:
        returncode = 0
        killed = False

        async def communicate(self) -> tuple[bytes, bytes]:
            await (asyncio.Event() if hangs else ended).wait()
            return b'{"works": true, "sentence": ""}', b""

        async def wait(self) -> int:
            await ended.wait()
            return 0

        def kill(self) -> None:
            self.killed = True

    child = Child()

    async def execute(*_: object, **__: object) -> Child:
        return child

    monkeypatch.setattr(asyncio, "create_subprocess_exec", execute)
    monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(machine="x86_64"))
    deadline = 0.0 if hangs else 60.0
    await assert_cancels_caller(kvm_probe.probe("/dev/kvm", deadline), ended.set, steps=10)
    assert child.killed is hangs

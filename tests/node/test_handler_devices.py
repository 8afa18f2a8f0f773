"""The device plugins against a stand-in for kubelet that speaks its real interface; the KVM probe on this machine."""

import asyncio
import contextlib
import os
import pathlib
import stat
import tempfile

import grpc.aio
import pytest

from handler.devices import device_plugin, kvm_probe
from protos import deviceplugin_pb2 as pb
from protos import deviceplugin_pb2_grpc as services
from tests.waiting import until

pytestmark = pytest.mark.node


class Kubelet(services.RegistrationServicer):
    """Accepts registrations, watches every plugin and records its device lists."""

    def __init__(self, directory: pathlib.Path) -> None:
        self.directory = directory
        self.registered: list[pb.RegisterRequest] = []
        self.healthy: dict[str, int] = {}
        self.total: dict[str, int] = {}
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        for leftover in self.directory.iterdir():
            leftover.unlink()
        self.server = grpc.aio.server()
        services.add_RegistrationServicer_to_server(self, self.server)
        self.server.add_insecure_port(f"unix:{self.directory}/kubelet.sock")
        await self.server.start()

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.server.stop(0)

    async def Register(self, request, context):
        self.registered.append(request)
        self._tasks.append(asyncio.create_task(self._follow(request)))
        return pb.Empty()

    async def _follow(self, request) -> None:
        async with self.plugin(request.endpoint) as stub:
            async for answer in stub.ListAndWatch(pb.Empty()):
                self.total[request.resource_name] = len(answer.devices)
                self.healthy[request.resource_name] = sum(device.health == "Healthy" for device in answer.devices)

    @contextlib.asynccontextmanager
    async def plugin(self, endpoint):
        options = [("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(f"unix:{self.directory}/{endpoint}", options=options) as channel:
            yield services.DevicePluginStub(channel)


@contextlib.asynccontextmanager
async def running(plugin):
    task = asyncio.create_task(plugin.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def plugin_of(device: pathlib.Path, directory: pathlib.Path) -> device_plugin.DevicePlugin:
    return device_plugin.DevicePlugin(
        "devices.kubevirt.io/tun", str(device), device_plugin.openable, directory, poll_seconds=0.05
    )


@pytest.fixture
async def kubelet():
    # Not pytest's folder: with several workers its path is longer than a socket's name may be (107 bytes).
    with tempfile.TemporaryDirectory(prefix="hl-") as directory:
        found = Kubelet(pathlib.Path(directory))
        await found.start()
        yield found
        await found.stop()


def make_device(path: pathlib.Path) -> None:
    os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 3))


async def test_device_is_added_and_removed(kubelet, tmp_path):
    device = tmp_path / "dev"
    async with running(plugin_of(device, kubelet.directory)):
        await until(lambda: kubelet.total.get("devices.kubevirt.io/tun") == 1000, "a thousand devices are offered")
        assert kubelet.healthy["devices.kubevirt.io/tun"] == 0
        make_device(device)
        await until(lambda: kubelet.healthy["devices.kubevirt.io/tun"] == 1000, "healthy once the device is there")
        device.unlink()
        await until(lambda: kubelet.healthy["devices.kubevirt.io/tun"] == 0, "unhealthy once it is gone")


async def test_single_failed_check_keeps_device_healthy(kubelet, tmp_path):
    asked, third = 0, asyncio.Event()

    async def check(_device: str) -> kvm_probe.KvmProbe:
        nonlocal asked
        asked += 1
        if asked == 3:
            await third.wait()
        return kvm_probe.KvmProbe(asked in (1, 3), "as the test has it")

    resource, device = "devices.kubevirt.io/kvm", str(tmp_path / "dev")
    plugin = device_plugin.DevicePlugin(
        resource, device, check, kubelet.directory, recheck_seconds=0.01, poll_seconds=0.02
    )
    async with running(plugin):
        await until(lambda: asked == 3, "asked again after a check that failed")
        assert plugin.verdict.works
        third.set()
        await until(lambda: asked >= 5 and kubelet.healthy.get(resource) == 0, "two in a row count")


async def test_regular_file_instead_of_device_is_unhealthy(kubelet, tmp_path):
    device = tmp_path / "dev"
    device.write_text("")
    async with running(plugin_of(device, kubelet.directory)):
        await until(lambda: "devices.kubevirt.io/tun" in kubelet.total, "registered")
        assert kubelet.healthy["devices.kubevirt.io/tun"] == 0


async def test_allocate_returns_device_without_mknod(kubelet, tmp_path):
    device = tmp_path / "dev"
    make_device(device)
    async with running(plugin_of(device, kubelet.directory)):
        await until(lambda: kubelet.registered, "registered")
        async with kubelet.plugin(kubelet.registered[0].endpoint) as stub:
            request = pb.AllocateRequest(container_requests=[pb.ContainerAllocateRequest(devicesIDs=["tun7"])] * 2)
            answer = await stub.Allocate(request)
    assert [
        [(spec.host_path, spec.container_path, spec.permissions) for spec in container.devices]
        for container in answer.container_responses
    ] == [[(str(device), str(device), "rw")]] * 2


async def test_plugin_registers_after_kubelet_restart(kubelet, tmp_path):
    device = tmp_path / "dev"
    make_device(device)
    async with running(plugin_of(device, kubelet.directory)):
        await until(lambda: kubelet.healthy.get("devices.kubevirt.io/tun") == 1000, "offered")
        await kubelet.stop()
        again = Kubelet(kubelet.directory)
        await again.start()
        kubelet.server = again.server
        await until(lambda: again.healthy.get("devices.kubevirt.io/tun") == 1000, "offered to the new kubelet")
        await again.stop()


async def test_plugin_waits_for_missing_kubelet(tmp_path):
    device = tmp_path / "dev"
    make_device(device)
    directory = tmp_path / "plugins"
    directory.mkdir()
    async with running(plugin_of(device, directory)):
        await asyncio.sleep(0.2)
        kubelet = Kubelet(directory)
        await kubelet.start()
        await until(lambda: kubelet.healthy.get("devices.kubevirt.io/tun") == 1000, "offered")
        await kubelet.stop()


async def test_kvm_probe_matches_guest_result():
    """On any machine the probe ends and reports its result."""
    verdict = await kvm_probe.probe()
    if not pathlib.Path(kvm_probe.DEVICE).exists():
        assert verdict == kvm_probe.KvmProbe(False, "/dev/kvm is missing")
    elif verdict.works:
        assert "loop iterations in" in verdict.sentence
    else:
        assert "/dev/kvm" in verdict.sentence


async def test_kvm_probe_fails_for_other_files(tmp_path):
    assert (await kvm_probe.probe(str(tmp_path / "none"))).works is False
    assert "does not work" in (await kvm_probe.probe("/dev/null")).sentence


async def test_kvm_probe_of_fifo_returns(tmp_path):
    fifo = tmp_path / "kvm"
    os.mkfifo(fifo)
    assert (await kvm_probe.probe(str(fifo), deadline=3)).works is False


async def test_kvm_probe_is_killed_at_deadline():
    verdict = await kvm_probe.probe(kvm_probe.DEVICE, deadline=0.001)
    assert verdict == kvm_probe.KvmProbe(False, "/dev/kvm hangs: the probe's guest did not halt within 0.001 s")

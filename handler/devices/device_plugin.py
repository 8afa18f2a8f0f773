"""Kubelet device plugins for KVM, tun/tap and vhost-net: they give an unprivileged launcher access to the devices.

Each device node is advertised many times, since VMs share it. A missing or broken device is advertised as Unhealthy, so
that no pod that needs it is scheduled here. A restarted kubelet forgets its plugins and recreates its socket; the
plugin notices that and registers again. (Bridges: `handler.devices.bridges`.)
Source: Kubernetes device plugin API v1beta1 (protos/deviceplugin.proto).
"""

import asyncio
import contextlib
import os
import pathlib
import stat
from collections.abc import AsyncIterator, Awaitable, Callable

import grpc.aio

from api import names
from handler.devices import kvm_probe
from kit import log
from protos import deviceplugin_pb2 as pb
from protos import deviceplugin_pb2_grpc as services

DIRECTORY = pathlib.Path("/var/lib/kubelet/device-plugins")
_KUBELET = "kubelet.sock"
_VERSION = "v1beta1"
_REGISTER_SECONDS = 5.0

Check = Callable[[str], Awaitable[kvm_probe.KvmProbe]]


async def openable(device: str) -> kvm_probe.KvmProbe:
    """Whether a character device exists and can be opened."""
    try:
        if not stat.S_ISCHR(pathlib.Path(device).stat().st_mode):
            return kvm_probe.KvmProbe(False, f"{device} is not a character device")
        os.close(os.open(device, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK))
    except OSError as error:
        return kvm_probe.KvmProbe(False, f"{device} cannot be opened: {error.strerror}")
    return kvm_probe.KvmProbe(True, f"{device} can be opened")


class DevicePluginServer(services.DevicePluginServicer):
    """One resource with `count` devices, healthy while `verdict` says so. `run` serves it until cancelled."""

    def __init__(
        self,
        resource: str,
        endpoint: str,
        verdict: kvm_probe.KvmProbe,
        directory: pathlib.Path = DIRECTORY,
        count: int = names.DEVICES_PER_NODE,
        poll_seconds: float = 1,
    ) -> None:
        """`endpoint`: the socket's name without prefix and suffix."""
        self.resource = resource
        self.verdict = verdict
        self._directory = directory
        self._count = count
        self._poll = poll_seconds
        self._endpoint = f"hyperlet-{endpoint}.sock"
        self._changed = asyncio.Condition()
        self._stopped = False
        self._log = log.logger(component="deviceplugin", resource=resource)

    async def run(self) -> None:
        """Serve until cancelled. Errors of kubelet are logged and retried."""
        await self._watch_kubelet()

    # ---- what kubelet calls ----------------------------------------------------------------------------------------

    async def GetDevicePluginOptions(self, request: pb.Empty, context: object) -> pb.DevicePluginOptions:
        """Device plugin API: no options."""
        return pb.DevicePluginOptions()

    async def ListAndWatch(self, request: pb.Empty, context: object) -> AsyncIterator[pb.ListAndWatchResponse]:
        """Device plugin API: the devices, now and after every change of their health."""
        said: bool | None = None
        while not self._stopped:
            async with self._changed:
                while not self._stopped and said is self.verdict.works:
                    await self._changed.wait()
                said = self.verdict.works
            health = "Healthy" if said else "Unhealthy"
            yield pb.ListAndWatchResponse(
                devices=[
                    pb.Device(ID=f"{self.resource.rpartition('/')[2]}{number}", health=health)
                    for number in range(self._count)
                ]
            )

    async def Allocate(self, request: pb.AllocateRequest, context: object) -> pb.AllocateResponse:
        """Device plugin API: the devices of `given`, for every container of the request."""
        return pb.AllocateResponse(
            container_responses=[pb.ContainerAllocateResponse(devices=self.given()) for _ in request.container_requests]
        )

    def given(self) -> list[pb.DeviceSpec]:
        """The device nodes that a container gets."""
        return []

    # ---- kubelet ---------------------------------------------------------------------------------------------------

    async def _watch_kubelet(self) -> None:
        server: grpc.aio.Server | None = None
        registered: object = None
        try:
            while True:
                kubelet = _identity(self._directory / _KUBELET)
                # A starting kubelet empties the directory: this socket may be gone although kubelet's is the same.
                if kubelet is not None and (kubelet != registered or not (self._directory / self._endpoint).exists()):
                    if server is not None:
                        await self._stop(server)
                    server = await self._serve()
                    registered = kubelet if await self._register() else None
                await asyncio.sleep(self._poll)
        finally:
            if server is not None:
                await self._stop(server)
                with contextlib.suppress(OSError):
                    (self._directory / self._endpoint).unlink()

    async def _serve(self) -> grpc.aio.Server:
        path = self._directory / self._endpoint
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        self._stopped = False
        server = grpc.aio.server()
        services.add_DevicePluginServicer_to_server(self, server)
        server.add_insecure_port(f"unix:{path}")
        await server.start()
        return server

    async def _stop(self, server: grpc.aio.Server) -> None:
        async with self._changed:
            self._stopped = True
            self._changed.notify_all()
        await server.stop(0.2)

    async def _register(self) -> bool:
        request = pb.RegisterRequest(version=_VERSION, endpoint=self._endpoint, resource_name=self.resource)
        async with grpc.aio.insecure_channel(
            f"unix:{self._directory / _KUBELET}", options=[("grpc.use_local_subchannel_pool", 1)]
        ) as channel:
            try:
                await services.RegistrationStub(channel).Register(request, timeout=_REGISTER_SECONDS)
            except grpc.aio.AioRpcError as error:
                self._log.warning("kubelet rejected the device plugin's registration, retrying", why=error.details())
                return False
        self._log.info("Registered with kubelet")
        return True


class DevicePlugin(DevicePluginServer):
    """A device node of the host, checked periodically."""

    def __init__(
        self,
        resource: str,
        device: str,
        check: Check,
        directory: pathlib.Path = DIRECTORY,
        count: int = names.DEVICES_PER_NODE,
        recheck_seconds: float = 600,
        poll_seconds: float = 1,
    ) -> None:
        self.checked = False
        """Whether `verdict` is the result of a check."""
        unknown = kvm_probe.KvmProbe(False, f"{device} has not been checked yet")
        super().__init__(resource, resource.rpartition("/")[2], unknown, directory, count, poll_seconds)
        self._device = device
        self._check = check
        self._recheck = recheck_seconds

    async def run(self) -> None:
        """Serve until cancelled. Errors of kubelet are logged and retried."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._watch_device())
            group.create_task(self._watch_kubelet())

    def given(self) -> list[pb.DeviceSpec]:
        """The device node, for reading and writing."""
        return [pb.DeviceSpec(container_path=self._device, host_path=self._device, permissions="rw")]

    async def _watch_device(self) -> None:
        loop = asyncio.get_running_loop()
        seen: object = None
        due = 0.0
        while True:
            now = _identity(self._device)
            if now != seen or loop.time() >= due:
                seen, due = now, loop.time() + self._recheck
                verdict = await self._check(self._device)
                if self.verdict.works and not verdict.works:
                    # The timed probe can fail on a busy node: repeat it before the device becomes Unhealthy.
                    verdict = await self._check(self._device)
                await self._set(verdict)
            await asyncio.sleep(self._poll)

    async def _set(self, verdict: kvm_probe.KvmProbe) -> None:
        if verdict.works != self.verdict.works or not self.checked:
            self._log.info("Checked the node's device", works=verdict.works, why=verdict.sentence)
        async with self._changed:
            self.verdict, self.checked = verdict, True
            self._changed.notify_all()


def _identity(path: str | pathlib.Path) -> object:
    """Distinguishes a file from a later one with the same name; None if there is none."""
    try:
        status = pathlib.Path(path).stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_rdev, status.st_ctime_ns


def standard(directory: pathlib.Path = DIRECTORY) -> list[DevicePlugin]:
    """The device plugins of every node: KVM, tun, vhost-net."""
    return [
        DevicePlugin(names.DEVICE_KVM, kvm_probe.DEVICE, kvm_probe.probe, directory),
        DevicePlugin(names.DEVICE_TUN, "/dev/net/tun", openable, directory, recheck_seconds=60),
        DevicePlugin(names.DEVICE_VHOST_NET, "/dev/vhost-net", openable, directory, recheck_seconds=60),
    ]

"""A node with CNI plugins, pods with namespaces and cgroups, and an API server that has their annotations."""

import asyncio
import json
import subprocess
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from api import network_attachments
from api.k8s.objects import Pod
from cni import build
from handler.secondary_networks.attachment_records import AttachmentRecords
from handler.secondary_networks.attachments import Attachments
from handler.secondary_networks.cni_exec import CniHost
from handler.secondary_networks.reconciler import PodNetworkReconciler
from kit.cache import Store
from kit.kube import Kube
from tests.fakes.apiserver import FakeApi
from tests.node import podlab
from tests.node.cnilab import PLUGINS, Lab, Space
from tests.waiting import until

Json = dict[str, Any]
NADS = "network-attachment-definitions"
NAMESPACE = "web"


class LabPod:
    """A pod: a process with its own network namespace and cgroup, like a sandbox."""

    def __init__(self, uid: str) -> None:
        self.uid = uid
        self.cgroup = podlab.Cgroup(uid)
        self.processes: list[subprocess.Popen[bytes]] = []
        self.sandbox()

    def sandbox(self) -> None:
        """Creates the sandbox; call it again to replace a dead one, as the kubelet does."""
        self.end()
        self.space = Space()
        self.space.run("ip link add eth0 type bridge; ip link set eth0 up address 02:00:00:00:00:e0")
        self.start("sleep", "600", enter=True)

    def start(self, *command: str, enter: bool = False) -> int:
        """Starts a process in the pod's cgroup; with `enter` in its network as well."""
        words = ["nsenter", f"--net={self.space.path}", *command] if enter else list(command)
        self.processes.append(subprocess.Popen(words))
        pid = self.processes[-1].pid
        self.cgroup.add(pid)
        while enter and Path(f"/proc/{pid}/ns/net").samefile("/proc/self/ns/net"):
            time.sleep(0.005)  # on its way
        return pid

    def end(self) -> None:
        """Ends all its processes: its namespace goes with them."""
        for each in self.processes:
            each.kill()
            each.wait()
        if self.processes:
            self.space.close()
        self.processes = []

    def close(self) -> None:
        self.end()
        self.cgroup.close()


class Node:
    """The node, with the handler's part that joins pods to networks."""

    def __init__(self, lab: Lab, api: FakeApi, folder: Path) -> None:
        self.lab, self.api, self.folder = lab, api, folder
        self.bin, self.conf = folder / "bin", folder / "net.d"
        for each in (self.bin, self.conf):
            each.mkdir()
        for name in build.NAMES:
            self.plugin(name, f"HYPERLET_CNI_SOCKET={lab.socket} exec {lab.folder}/{name}")
        self.host = CniHost(
            mounts="/proc/self/ns/mnt",
            network=lab.node.path,
            plugins=(str(self.bin), PLUGINS),
            configurations=(str(self.conf),),
        )
        self.configure("10-pods.conflist", {"name": "pods", "plugins": [{"type": "bridge"}]})
        self.pods: list[LabPod] = []
        self.kubes: list[Kube] = []
        self.made: list[Attachments] = []
        self.tasks: list[asyncio.Task[None]] = []

    def plugin(self, name: str, script: str) -> None:
        """Puts a plugin that is a shell script onto the node."""
        path = self.bin / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def configure(self, name: str, document: Json | None) -> None:
        """Writes a configuration file of the node's own network, or removes it."""
        path = self.conf / name
        path.unlink(missing_ok=True) if document is None else path.write_text(json.dumps(document))

    def kube(self) -> Kube:
        folder = self.folder / f"kube{len(self.kubes)}"
        folder.mkdir()
        self.kubes.append(Kube.connect("handler", self.api.kubeconfig(folder)))
        return self.kubes[-1]

    def attachments(self) -> Attachments:
        """The attachments of a handler that has just started."""
        self.made.append(Attachments(self.kube(), AttachmentRecords(self.folder / "attachments"), self.host))
        return self.made[-1]

    async def handler(self) -> Attachments:
        """A complete handler that watches the pods."""
        made = self.attachments()
        kube = self.kube()
        store: Store[Pod] = Store(kube, Pod)
        self.networks = PodNetworkReconciler(kube, store, made)
        self.tasks += [asyncio.create_task(store.run()), asyncio.create_task(self.networks.run())]
        return made

    async def restart(self) -> Attachments:
        """Stops the handler as a crash would, and starts a new one."""
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        self.tasks.clear()
        return await self.handler()

    async def network(self, name: str, config: Json | str, namespace: str = NAMESPACE) -> None:
        """Makes a NetworkAttachmentDefinition."""
        text = config if isinstance(config, str) else json.dumps(config)
        self.api.put(NADS, {"metadata": {"name": name, "namespace": namespace}, "spec": {"config": text}})

    async def pod(self, name: str, networks: str, owner: str = "") -> LabPod:
        """Makes a pod that runs."""
        metadata: Json = {
            "name": name,
            "namespace": NAMESPACE,
            "annotations": {network_attachments.ANNOTATION_NETWORKS: networks},
        }
        containers: list[Json] = []
        if owner:
            given = {"HYPERLET_NAMESPACE": NAMESPACE, "HYPERLET_NAME": owner, "HYPERLET_UID": "1"}
            containers = [{"name": "compute", "env": [{"name": key, "value": value} for key, value in given.items()]}]
        status = {
            "phase": "Running",
            "podIP": "10.1.0.5",
            "containerStatuses": [{"name": "app", "state": {"running": {}}}],
        }
        made = self.api.put("pods", {"metadata": metadata, "spec": {"containers": containers}, "status": status})
        self.pods.append(LabPod(made["metadata"]["uid"]))
        return self.pods[-1]

    def stored_pod(self, name: str) -> Pod:
        """A pod as the API server has it."""
        return msgspec.convert(self.api.find("pods", name, NAMESPACE), Pod)

    def status_entries(self, name: str) -> list[Json]:
        """The entries of a pod's status annotation, but for the pod's own network."""
        text = (self.stored_pod(name).metadata.annotations or {}).get(network_attachments.ANNOTATION_STATUS)
        return json.loads(text)[1:] if text else []

    def events(self) -> list[tuple[str, str]]:
        """Reasons and messages of all Events."""
        return [(each["reason"], each["message"]) for each in self.api.of("events")]

    def ports(self) -> set[str]:
        """The interfaces that cnv-bridge has made on the node."""
        return {name for name in self.lab.node.links() if name.startswith("cnv")}

    def records(self) -> set[str]:
        """The pods on record."""
        return {each.stem for each in (self.folder / "attachments").glob("*.json")}

    def leases(self, network: str) -> set[str]:
        """The addresses that host-local has allocated."""
        folder = self.lab.data / "ipam" / network
        return {each.name for each in folder.iterdir() if each.name[0].isdigit()} if folder.exists() else set()

    async def close(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        for attachments in self.made:
            await attachments.close()
        for each in self.pods:
            each.close()
        for kube in self.kubes:
            await kube.close()


@pytest.fixture
async def node(lab: Lab, tmp_path: Path) -> AsyncIterator[Node]:
    """A node for one test."""
    async with FakeApi() as api:
        made = Node(lab, api, tmp_path)
        try:
            yield made
        finally:
            await made.close()


def bridge(lab: Lab, name: str = "lan", **fields: Any) -> Json:
    """A configuration of cnv-bridge with addresses."""
    ipam = {"type": "host-local", "ranges": [[{"subnet": "192.0.2.0/24"}]], "dataDir": str(lab.data / "ipam")}
    return {"cniVersion": "1.0.0", "name": name, "type": "cnv-bridge", "bridge": "br1", "ipam": ipam, **fields}


__all__ = ["NAMESPACE", "LabPod", "Node", "bridge", "node", "until"]

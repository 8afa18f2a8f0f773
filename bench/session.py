"""A namespace to measure in, watched from the start, empty again at the end."""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from bench import objects
from bench.api import ApiFailure, BenchApi, Object, Watch
from bench.api import server as connect
from bench.timeline import TimelineRecorder, Timeout

NAMESPACE = "bench"
SYSTEM = "hyperlet"
KUBEVIRT = "/apis/kubevirt.io/v1"
PATIENCE = 300.0
"""Seconds any single step may take before the bench gives up."""

SPACE = f"/api/v1/namespaces/{NAMESPACE}"
PATHS = {
    "Pod": f"{SPACE}/pods",
    "VirtualMachineInstance": f"{KUBEVIRT}/namespaces/{NAMESPACE}/virtualmachineinstances",
    "VirtualMachine": f"{KUBEVIRT}/namespaces/{NAMESPACE}/virtualmachines",
}


def path(kind: str, name: str = "") -> str:
    """URL path of a collection in the benches' namespace, or of one object."""
    return f"{PATHS[kind]}/{name}" if name else PATHS[kind]


class Session:
    """Makes objects in the namespace and waits for what becomes of them."""

    def __init__(self, kubeconfig: Path, root: Path) -> None:
        self.kubeconfig = kubeconfig
        self.root = root
        self.server = connect(kubeconfig)
        self.api = BenchApi(self.server)
        self.recorder = TimelineRecorder()
        self._watches: list[Watch] = []
        self._launcher: Object | None = None
        self._serial = 0

    def __enter__(self) -> Session:
        if (self.api.find(SPACE) or {}).get("status", {}).get("phase") == "Terminating":
            self.wait_by_kubectl("delete", f"namespace/{NAMESPACE}")
        try:
            self.api.create("/api/v1/namespaces", {"metadata": {"name": NAMESPACE}})
        except ApiFailure as failure:
            if failure.status != 409:
                raise
        # A namespace's first pods are refused until its account `default` is there.
        self.wait_by_kubectl("create", "serviceaccount/default")
        self._watches = [Watch(self.server, PATHS[kind], self.recorder.listen(kind)) for kind in PATHS]
        # What an interrupted run left would be measured along with the rest.
        self.clean()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is not None:
                say("cleaning up")
            self.clean()
            self.api.delete(SPACE)
            self.wait_by_kubectl("delete", f"namespace/{NAMESPACE}")
        finally:
            for watch in self._watches:
                watch.close()

    def wait_by_kubectl(self, event: str, *words: str) -> None:
        """For what the watches do not see; at most two minutes. Whether it worked is the caller's to look at."""
        command = ["kubectl", "wait", f"--for={event}", *words, "--timeout=120s", f"--namespace={NAMESPACE}"]
        environment = {**os.environ, "KUBECONFIG": str(self.kubeconfig)}
        subprocess.run(command, env=environment, capture_output=True, check=False)

    def check(self) -> None:
        """Raises Timeout when a watch has died: its silence would read as slowness."""
        for watch in self._watches:
            if watch.failure:
                raise Timeout(f"a watch ended: {watch.failure}")

    def name(self, word: str) -> str:
        """A name never used before in this run."""
        self._serial += 1
        return f"{word}-{self._serial}"

    def create(self, kind: str, things: Iterable[Object]) -> list[str]:
        """Create objects one after the other, as fast as the server takes them; their names, each marked "asked"."""
        names = []
        for thing in things:
            name = str(thing["metadata"]["name"])
            self.recorder.mark(name, "asked")
            self.api.create(path(kind), thing)
            names.append(name)
        return names

    def wait(self, names: Iterable[str], milestone: str, seconds: float = PATIENCE) -> None:
        """Until all have the milestone. Raises Timeout."""
        self.recorder.wait(names, milestone, seconds, self.check)

    def delete(self, kind: str, names: Sequence[str], gone: str, pods: str = "pod gone") -> None:
        """Delete the objects, each marked "delete asked", and wait until they are gone and their pods "pod gone".

        With `pods` "pod over" no pod has a process left; the kubelet may take ten seconds more to take the object away.
        """
        for name in names:
            self.recorder.mark(name, "delete asked")
            self.api.delete(path(kind, name))
        self.wait(names, gone)
        for made, ended in (("vmi created", "vmi gone"), ("pod created", pods)):
            self.wait([n for n in names if made in self.recorder.marks(n)], ended)

    def run(self, instances: Iterable[Object]) -> list[str]:
        """Create VMIs and wait until all are Running; their names."""
        names = self.create("VirtualMachineInstance", instances)
        self.wait(names, "Running")
        return names

    @contextmanager
    def running(self, instances: Iterable[Object], pods: str = "pod gone") -> Iterator[list[str]]:
        """VMIs that run inside the block and are gone after it; `pods` as for `delete`."""
        names = self.run(instances)
        yield names
        self.delete("VirtualMachineInstance", names, "vmi gone", pods)

    def pod(self, name: str) -> Object:
        """The launcher pod of a VMI (or a bare pod), as last seen."""
        return dict(self.recorder.latest("Pod", name))

    def launcher(self) -> Object:
        """A launcher pod to read image and resources from: of a VMI started and ended to warm the nodes up."""
        if self._launcher is None:
            nodes = self.nodes()
            with self.running(objects.vmi(self.name("warm-up"), node=node) for node in nodes) as names:
                self._launcher = self.pod(names[0])
        return self._launcher

    def nodes(self) -> list[str]:
        """Nodes that take virtual machines."""
        found = self.api.items("/api/v1/nodes?labelSelector=kubevirt.io%2Fschedulable%3Dtrue")
        return sorted(node["metadata"]["name"] for node in found)

    def system_pods(self, word: str) -> list[Object]:
        """Hyperlet's own running pods whose name contains the word."""
        pods = self.api.items(f"/api/v1/namespaces/{SYSTEM}/pods")
        return [p for p in pods if word in p["metadata"]["name"] and p["status"].get("phase") == "Running"]

    def images(self) -> list[str]:
        """What hyperlet's own workloads run, and the launchers they make."""
        found = set()
        for kind in ("deployments", "daemonsets"):
            for workload in self.api.items(f"/apis/apps/v1/namespaces/{SYSTEM}/{kind}"):
                found |= {c["image"] for c in workload["spec"]["template"]["spec"]["containers"]}
        if self._launcher is not None:
            found |= {c["image"] for c in self._launcher["spec"]["containers"]}
        return sorted(found)

    def foreign(self) -> list[Object]:
        """VMIs that are not the benches': they share pages and CPU with what is measured."""
        found = self.api.items(f"{KUBEVIRT}/virtualmachineinstances")
        return [v for v in found if v["metadata"]["namespace"] != NAMESPACE]

    def clean(self) -> None:
        """Delete everything in the namespace and wait until it is gone."""
        for kind in ("VirtualMachine", "VirtualMachineInstance", "Pod"):
            left = [thing["metadata"]["name"] for thing in self.api.items(path(kind))]
            for name in left:
                self.api.delete(path(kind, name))
            end = {"VirtualMachine": "vm gone", "VirtualMachineInstance": "vmi gone"}.get(kind)
            if left and end:
                self._wait_until_empty(kind)
        self._wait_until_empty("Pod")

    def _wait_until_empty(self, kind: str) -> None:
        """By kubectl, since the watches may have missed what was there before them."""
        resource = path(kind).rsplit("/", 1)[1]
        self.wait_by_kubectl("delete", resource, "--all")
        left = [thing["metadata"]["name"] for thing in self.api.items(path(kind))]
        if left:
            raise Timeout(f"still there after 120 s: {resource} {', '.join(left)}")

    def conditions(self, repeat: int) -> dict[str, Any]:
        """What the numbers depend on: machine, load, versions."""
        nodes = self.api.items("/api/v1/nodes")
        info = nodes[0]["status"]["nodeInfo"]
        allocatable = [n["status"]["allocatable"].get("devices.kubevirt.io/kvm", "0") for n in nodes]
        return {
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "commit": git(self.root, "rev-parse", "--short", "HEAD"),
            "changed files": len(git(self.root, "status", "--porcelain").splitlines()),
            "images": self.images(),
            "kubernetes": self.api.get("/version")["gitVersion"],
            "container runtime": info["containerRuntimeVersion"],
            "nodes": len(nodes),
            "accelerator": "kvm" if any(a != "0" for a in allocatable) else "tcg",
            "kernel": platform.release(),
            "cpus": len(os.sched_getaffinity(0)),
            "python": platform.python_version(),
            "load average": list(os.getloadavg()),
            "other VMIs": len(self.foreign()),
            "repeat": repeat,
        }


def git(root: Path, *words: str) -> str:
    """What git says, nothing where this is no checkout."""
    done = subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""


def say(text: str) -> None:
    """A line of progress; the result's table goes to standard output."""
    print(f"  {text}", file=sys.stderr, flush=True)


def write(result: dict[str, Any], folder: Path) -> Path:
    """Write a result's JSON and return where."""
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{result['bench']}.json"
    target.write_text(json.dumps(result, indent=2) + "\n")
    return target

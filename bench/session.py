"""A benchmark session: a namespace with watches, cleaned up at the end."""

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
"""Timeout of a single step in seconds."""

SPACE = f"/api/v1/namespaces/{NAMESPACE}"
PATHS = {
    "Pod": f"{SPACE}/pods",
    "VirtualMachineInstance": f"{KUBEVIRT}/namespaces/{NAMESPACE}/virtualmachineinstances",
    "VirtualMachine": f"{KUBEVIRT}/namespaces/{NAMESPACE}/virtualmachines",
}


def path(kind: str, name: str = "") -> str:
    """URL path of a collection in the benchmark namespace, or of one object."""
    return f"{PATHS[kind]}/{name}" if name else PATHS[kind]


class Session:
    """Creates and deletes objects in the namespace, and waits for milestones."""

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
        # Pods are refused until the namespace's service account `default` exists.
        self.wait_by_kubectl("create", "serviceaccount/default")
        self._watches = [Watch(self.server, PATHS[kind], self.recorder.listen(kind)) for kind in PATHS]
        # Remove leftovers of an interrupted run, which would distort the measurement.
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
        """Waits with kubectl for at most two minutes, for what the watches do not cover. Failures are ignored."""
        command = ["kubectl", "wait", f"--for={event}", *words, "--timeout=120s", f"--namespace={NAMESPACE}"]
        environment = {**os.environ, "KUBECONFIG": str(self.kubeconfig)}
        subprocess.run(command, env=environment, capture_output=True, check=False)

    def check(self) -> None:
        """Raises Timeout if a watch has ended: missing events would look like delays."""
        for watch in self._watches:
            if watch.failure:
                raise Timeout(f"a watch ended: {watch.failure}")

    def name(self, word: str) -> str:
        """A name that is unique in this run."""
        self._serial += 1
        return f"{word}-{self._serial}"

    def create(self, kind: str, things: Iterable[Object]) -> list[str]:
        """Create objects sequentially, as fast as possible, each marked "asked". Their names."""
        names = []
        for thing in things:
            name = str(thing["metadata"]["name"])
            self.recorder.mark(name, "asked")
            self.api.create(path(kind), thing)
            names.append(name)
        return names

    def wait(self, names: Iterable[str], milestone: str, seconds: float = PATIENCE) -> None:
        """Wait until all have the milestone. Raises Timeout."""
        self.recorder.wait(names, milestone, seconds, self.check)

    def delete(self, kind: str, names: Sequence[str], gone: str, pods: str = "pod gone") -> None:
        """Delete the objects, each marked "delete asked", and wait for `gone` and for milestone `pods` of their pods.

        `pods` "pod over": no process of the pod is left; the kubelet may delete the Pod up to ten seconds later.
        """
        for name in names:
            self.recorder.mark(name, "delete asked")
            self.api.delete(path(kind, name))
        self.wait(names, gone)
        for made, ended in (("vmi created", "vmi gone"), ("pod created", pods)):
            self.wait([n for n in names if made in self.recorder.marks(n)], ended)

    def run(self, instances: Iterable[Object]) -> list[str]:
        """Create VMIs and wait until all are Running. Their names."""
        names = self.create("VirtualMachineInstance", instances)
        self.wait(names, "Running")
        return names

    @contextmanager
    def running(self, instances: Iterable[Object], pods: str = "pod gone") -> Iterator[list[str]]:
        """VMIs that run inside the block and are deleted after it; `pods` as for `delete`."""
        names = self.run(instances)
        yield names
        self.delete("VirtualMachineInstance", names, "vmi gone", pods)

    def pod(self, name: str) -> Object:
        """The launcher pod of a VMI (or a bare pod), as last seen."""
        return dict(self.recorder.latest("Pod", name))

    def launcher(self) -> Object:
        """A launcher pod, to copy image and resources from: of a VMI that is run to warm up the nodes."""
        if self._launcher is None:
            nodes = self.nodes()
            with self.running(objects.vmi(self.name("warm-up"), node=node) for node in nodes) as names:
                self._launcher = self.pod(names[0])
        return self._launcher

    def nodes(self) -> list[str]:
        """Schedulable nodes."""
        found = self.api.items("/api/v1/nodes?labelSelector=kubevirt.io%2Fschedulable%3Dtrue")
        return sorted(node["metadata"]["name"] for node in found)

    def system_pods(self, word: str) -> list[Object]:
        """Running pods of hyperlet whose name contains `word`."""
        pods = self.api.items(f"/api/v1/namespaces/{SYSTEM}/pods")
        return [p for p in pods if word in p["metadata"]["name"] and p["status"].get("phase") == "Running"]

    def images(self) -> list[str]:
        """Images of hyperlet's workloads and of the launcher."""
        found = set()
        for kind in ("deployments", "daemonsets"):
            for workload in self.api.items(f"/apis/apps/v1/namespaces/{SYSTEM}/{kind}"):
                found |= {c["image"] for c in workload["spec"]["template"]["spec"]["containers"]}
        if self._launcher is not None:
            found |= {c["image"] for c in self._launcher["spec"]["containers"]}
        return sorted(found)

    def foreign(self) -> list[Object]:
        """VMIs outside of the benchmark namespace: they share pages and CPU with the measured ones."""
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
        """Waits with kubectl, because the watches do not cover older objects."""
        resource = path(kind).rsplit("/", 1)[1]
        self.wait_by_kubectl("delete", resource, "--all")
        left = [thing["metadata"]["name"] for thing in self.api.items(path(kind))]
        if left:
            raise Timeout(f"not deleted after 120 s: {resource} {', '.join(left)}")

    def conditions(self, repeat: int) -> dict[str, Any]:
        """Conditions of the measurement: machine, load, versions."""
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
    """The output of git; empty outside of a checkout."""
    done = subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""


def say(text: str) -> None:
    """Print a progress line to standard error; results go to standard output."""
    print(f"  {text}", file=sys.stderr, flush=True)


def write(result: dict[str, Any], folder: Path) -> Path:
    """Write a result as JSON and return the path."""
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{result['bench']}.json"
    target.write_text(json.dumps(result, indent=2) + "\n")
    return target

"""`python -m bench.chaos [--actions N] [--seed N]`: random deletions and faults; one VM must never have two QEMUs.

The guest ignores ACPI power-off, so that every stop takes the full grace period and a second copy would run beside the
first for seconds. A watcher counts the QEMU processes of the VM on this machine, which runs both nodes of the cluster
of `make up`, ten times a second from before the first action until after the last. Exit status: 0 never two, 1 two were
seen or the VM did not recover, 2 the test could not run.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from api.k8s.meta import Json
from bench import objects

ROOT = Path(__file__).resolve().parent.parent
RUN = Path(os.environ.get("HYPERLET_RUN", str(ROOT / ".run")))
VM = "chaos"
SYSTEM = "hyperlet"
NODES = ("node1", "node2")
GRACE = 4
"""terminationGracePeriodSeconds of the VM."""
RETURN_SECONDS = 180.0
"""Timeout for the VM's recovery after the last action: a stopped kubelet needs time to catch up."""
SETTLED = 0.35
"""Share of the actions after which the VM is awaited."""
CRITICAL = "hyperlet-chaos"
"""The PriorityClass of preempting pods."""


class Failed(Exception):
    """kubectl failed, or the cluster is unavailable."""


def kubectl(*words: str, document: Json | None = None, user: str = "", check: bool = False) -> str:
    """kubectl's output. On failure its error message, or with `check` raises Failed."""
    impersonated = [f"--as={user}"] if user else []
    try:
        done = subprocess.run(
            ["kubectl", f"--kubeconfig={RUN / 'kubeconfig'}", "--request-timeout=20s", *impersonated, *words],
            input=json.dumps(document) if document is not None else None,
            text=True,
            capture_output=True,
            check=False,
            timeout=60,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        if check:
            raise Failed(str(error)) from error
        return str(error)
    if check and done.returncode:
        raise Failed(done.stderr.strip())
    return done.stdout if done.returncode == 0 else done.stderr


def in_node(node: str, script: str) -> str:
    """The output of a shell script run inside a node."""
    command = [sys.executable, "-m", "cluster", "exec", node, "--", "sh", "-c", script]
    return subprocess.run(command, cwd=ROOT, text=True, capture_output=True, check=False).stdout


# ---- counting -------------------------------------------------------------------------------------------------------


def qemus(mark: bytes, proc: Path = Path("/proc")) -> list[int]:
    """PIDs of QEMU processes on this machine with `mark` as an argument. Zombies have no command line."""
    found = []
    for entry in proc.iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and (entry / "comm").read_bytes().startswith(b"qemu-system"):
                command = (entry / "cmdline").read_bytes().split(b"\0")
                if any(word == mark or word.startswith(mark + b",") for word in command):
                    found.append(int(entry.name))
    return sorted(found)


@dataclass
class Watcher:
    """Counts QEMU processes until stopped."""

    mark: bytes
    samples: Counter[int] = field(default_factory=Counter)
    """Number of samples by number of processes."""
    starts: set[int] = field(default_factory=set)
    doubles: list[str] = field(default_factory=list)
    doing: str = "nothing yet"
    _stop: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        """Takes ten samples a second."""
        while not self._stop.wait(0.1):
            found = qemus(self.mark)
            self.samples[len(found)] += 1
            self.starts |= set(found)
            if len(found) > 1:
                self.doubles.append(f"{time.strftime('%X')} pids {found}, after: {self.doing}")

    def stop(self) -> None:
        """Stops the counting."""
        self._stop.set()


# ---- actions --------------------------------------------------------------------------------------------------------


class Chaos:
    """The VM, and the actions on it. Docstrings of actions are the titles in the result."""

    def __init__(self, namespace: str, dice: random.Random) -> None:
        self.namespace = namespace
        self.dice = dice
        self.stopped: dict[str, tuple[float, Callable[[], object]]] = {}
        """What was stopped: when to resume it, and how."""
        self._serial = 0

    def ask(self, *words: str, **more: Any) -> str:
        """kubectl in the VM's namespace."""
        return kubectl(f"--namespace={self.namespace}", *words, **more)

    def one(self, kind: str, name: str = VM) -> Json:
        """An object; empty if it does not exist."""
        text = self.ask("get", kind, name, "-o", "json", "--ignore-not-found")
        try:
            return dict(json.loads(text)) if text.strip() else {}
        except ValueError:
            return {}

    def pods(self) -> list[Json]:
        """Launcher pods that have not ended, selected by name because actions remove labels."""
        try:
            items = json.loads(self.ask("get", "pods", "-o", "json"))["items"]
        except (ValueError, KeyError):
            return []
        prefix = f"virt-launcher-{VM}-"
        return [
            each
            for each in items
            if each["metadata"]["name"].startswith(prefix) and each["status"].get("phase") in ("Running", "Pending")
        ]

    def pod(self) -> str:
        """The name of a launcher pod; empty if there is none."""
        found = self.pods()
        return str(found[0]["metadata"]["name"]) if found else ""

    def node(self) -> str:
        """The VM's node, else a random one."""
        return str(self.one("vmi").get("status", {}).get("nodeName") or self.dice.choice(NODES))

    def manifest(self) -> Json:
        """The VM; its guest's boot sector halts."""
        instance = objects.vmi(VM, nic=False, graphics=False, grace=GRACE)
        labels = {"labels": {"app": VM}}
        return {
            "apiVersion": "kubevirt.io/v1",
            "kind": "VirtualMachine",
            "metadata": {"name": VM},
            "spec": {"runStrategy": "Always", "template": {"metadata": labels, "spec": instance["spec"]}},
        }

    # -- deletions

    def delete_instance(self) -> None:
        """kubectl delete vmi"""
        self.ask("delete", "vmi", VM, "--wait=false")

    def delete_instance_foreground(self) -> None:
        """kubectl delete vmi --cascade=foreground"""
        self.ask("delete", "vmi", VM, "--cascade=foreground", "--wait=false")

    def orphan_pod(self) -> None:
        """kubectl delete vmi --cascade=orphan"""
        self.ask("delete", "vmi", VM, "--cascade=orphan", "--wait=false")

    def delete_pod(self) -> None:
        """kubectl delete pod"""
        self.ask("delete", "pod", self.pod(), "--wait=false")

    def force_pod(self) -> None:
        """kubectl delete pod --force"""
        self.ask("delete", "pod", self.pod(), "--force", "--grace-period=0", "--wait=false")

    def force_both(self) -> None:
        """kubectl delete vmi, and its pod --force"""
        name = self.pod()
        self.ask("delete", "vmi", VM, "--wait=false")
        self.ask("delete", "pod", name, "--force", "--grace-period=0", "--wait=false")

    def force_with_silent_kubelet(self) -> None:
        """kubectl delete pod --force, its kubelet stopped"""
        self._stop_daemon(self.node(), "kubelet")
        self.force_pod()

    def force_with_silent_node(self) -> None:
        """kubectl delete pod --force, kubelet and handler stopped"""
        node = self.node()
        self._stop_daemon(node, "kubelet")
        self._stop_handler(node)
        self.force_pod()

    def orphan_instance(self) -> None:
        """kubectl delete vm --cascade=orphan, recreated"""
        self.ask("delete", "vm", VM, "--cascade=orphan", "--wait=false")
        self._apply()

    def delete_machine(self) -> None:
        """kubectl delete vm, recreated"""
        self.ask("delete", "vm", VM, "--wait=false")
        self._apply()

    def _apply(self) -> None:
        """Recreates the VM as soon as the old one is deleted."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            self.go_on()
            if not self.one("vm").get("metadata", {}).get("deletionTimestamp"):
                self.ask("apply", "-f", "-", document=self.manifest())
                return
            time.sleep(0.5)

    # -- evictions, preemptions, statuses

    def evict(self) -> None:
        """eviction API"""
        name = self.pod()
        body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name, "namespace": self.namespace}}
        self.ask(
            "create", "--raw", f"/api/v1/namespaces/{self.namespace}/pods/{name}/eviction", "-f", "-", document=body
        )

    def preempt(self) -> None:
        """preemption by the scheduler"""
        self._serial += 1
        name = f"preemptor-{self._serial}"
        term = {"labelSelector": {"matchLabels": {"app": VM}}, "topologyKey": "kubernetes.io/hostname"}
        spec: Json = {
            "priorityClassName": CRITICAL,
            "terminationGracePeriodSeconds": 0,
            "nodeSelector": {"kubernetes.io/hostname": self.node()},
            "affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}},
            "containers": [{"name": "main", "image": objects.HALT, "imagePullPolicy": "Never", "command": ["/none"]}],
        }
        self.ask(
            "create", "-f", "-", document={"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}
        )
        self.stopped[name] = (
            time.monotonic() + 6,
            lambda: self.ask("delete", "pod", name, "--force", "--grace-period=0", "--wait=false"),
        )

    def call_failed(self) -> None:
        """pod status Failed, Preempting, kubelet stopped"""
        self._stop_daemon(self.node(), "kubelet")
        early = {"phase": "Failed", "reason": "Preempting", "containerStatuses": None}
        body = json.dumps({"status": early})
        self.ask("patch", "pod", self.pod(), "--subresource=status", "--type=merge", "-p", body)

    # -- owners, labels, finalizers

    def strip_pod(self) -> None:
        """pod without owner and labels"""
        bare = '{"metadata": {"ownerReferences": null, "labels": null}}'
        self.ask("patch", "pod", self.pod(), "--type=merge", "-p", bare)

    def strip_finalizer(self) -> None:
        """user with role edit removes the finalizer and deletes"""
        user = f"system:serviceaccount:{self.namespace}:default"
        self.ask("patch", "vmi", VM, "--type=merge", "-p", '{"metadata": {"finalizers": null}}', user=user)
        self.ask("delete", "vmi", VM, "--wait=false", user=user)
        self.ask("patch", "vmi", VM, "--type=merge", "-p", '{"metadata": {"finalizers": null}}', user=user)

    def stop_and_start(self) -> None:
        """runStrategy Halted, then Always"""
        for strategy in ("Halted", "Always"):
            self.ask("patch", "vm", VM, "--type=merge", "-p", json.dumps({"spec": {"runStrategy": strategy}}))
            time.sleep(self.dice.uniform(0, 2))

    # -- components

    def kill_kubelet(self) -> None:
        """kubelet killed"""
        in_node(self.node(), "kill -KILL $(pidof kubelet)")

    def stop_kubelet(self) -> None:
        """kubelet stopped for some seconds"""
        self._stop_daemon(self.node(), "kubelet")

    def kill_handler(self) -> None:
        """handler killed"""
        in_node(self.node(), _each_handler("KILL"))

    def stop_handler(self) -> None:
        """handler stopped for some seconds"""
        self._stop_handler(self.node())

    def delete_controller(self) -> None:
        """controller pods deleted"""
        kubectl("-n", SYSTEM, "delete", "pod", "--selector=kubevirt.io=virt-controller", "--wait=false")

    def _stop_daemon(self, node: str, name: str) -> None:
        self._pause(f"{name} of {node}", node, f"kill -%s $(pidof {name})")

    def _stop_handler(self, node: str) -> None:
        self._pause(f"handler of {node}", node, _each_handler("%s"))

    def _pause(self, what: str, node: str, script: str) -> None:
        if what not in self.stopped:
            in_node(node, script % "STOP")
            self.stopped[what] = (
                time.monotonic() + self.dice.uniform(4, 14),
                lambda: in_node(node, script % "CONT"),
            )

    def go_on(self, everything: bool = False) -> None:
        """Resumes what has been stopped for long enough, or `everything`."""
        for what, (until, resume) in list(self.stopped.items()):
            if everything or time.monotonic() >= until:
                resume()
                del self.stopped[what]

    def settle(self, seconds: float) -> bool:
        """Waits at most `seconds` for the VM to run, and resets its restart back-off. Whether it runs."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self.go_on()
            vm = self.one("vm")
            status = vm.get("status", {})
            if status.get("printableStatus") == "Running" and status.get("ready"):
                return True
            if status.get("printableStatus") == "CrashLoopBackOff":
                self.ask(
                    "patch", "vm", VM, "--subresource=status", "--type=merge", "-p", '{"status":{"startFailure":null}}'
                )
            if not vm:
                self.ask("apply", "-f", "-", document=self.manifest())
            time.sleep(0.5)
        return False


def _each_handler(signal: str) -> str:
    """A shell script that sends a signal to a node's handler, found by its command line (the script's own differs)."""
    return (
        "for each in /proc/[0-9]*; do "
        'case "$(tr "\\0" " " <"$each/cmdline" 2>/dev/null)" in *"-m handle"[r]" "*) kill -'
        + signal
        + ' "${each#/proc/}";; esac; done'
    )


ACTIONS: dict[str, int] = {
    "delete_instance": 3,
    "delete_instance_foreground": 2,
    "orphan_pod": 3,
    "delete_pod": 3,
    "force_pod": 4,
    "force_both": 3,
    "force_with_silent_kubelet": 4,
    "force_with_silent_node": 2,
    "orphan_instance": 3,
    "delete_machine": 2,
    "evict": 3,
    "preempt": 3,
    "call_failed": 3,
    "strip_pod": 3,
    "strip_finalizer": 3,
    "stop_and_start": 2,
    "kill_kubelet": 2,
    "stop_kubelet": 2,
    "kill_handler": 2,
    "stop_handler": 2,
    "delete_controller": 1,
}
"""Methods of Chaos, with their weights."""


def chosen(dice: random.Random, count: int) -> list[str]:
    """The actions in random order; each at least once if `count` is large enough. Pure."""
    names = list(ACTIONS)
    picked = dice.choices(names, weights=list(ACTIONS.values()), k=max(0, count - len(names)))
    picked += names[: count - len(picked)]
    dice.shuffle(picked)
    return picked


# ---- the run --------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def space() -> Iterator[str]:
    """A namespace with a service account of role edit, and the PriorityClass; deleted at the end."""
    name = f"chaos-{secrets.token_hex(3)}"
    kubectl("create", "namespace", name, check=True)
    priority: Json = {
        "apiVersion": "scheduling.k8s.io/v1",
        "kind": "PriorityClass",
        "metadata": {"name": CRITICAL},
        "value": 1000,
    }
    try:
        kubectl("apply", "-f", "-", document=priority, check=True)
        account = f"--serviceaccount={name}:default"
        kubectl("-n", name, "create", "rolebinding", "edits", "--clusterrole=edit", account, check=True)
        yield name
    finally:
        kubectl("-n", name, "delete", "vm,vmi", "--all", "--wait=false")
        kubectl("delete", "namespace", name, "--wait=false")
        kubectl("delete", "priorityclass", CRITICAL, "--wait=false")


def run(count: int, seed: int) -> tuple[Watcher, Counter[str], bool]:
    """Runs the test. Returns the watcher, the number of runs of each action, and whether the VM recovered."""
    dice = random.Random(seed)
    done: Counter[str] = Counter()
    interrupted: list[int] = []
    for each in (signal.SIGTERM, signal.SIGINT):
        # On interruption report the samples so far, and resume what was stopped.
        signal.signal(each, lambda caught, _frame: interrupted.append(caught))
    with space() as namespace:
        chaos = Chaos(namespace, dice)
        watcher = Watcher(f"guest={namespace}_{VM}".encode())
        thread = threading.Thread(target=watcher.run, daemon=True)
        thread.start()
        try:
            kubectl("-n", namespace, "apply", "-f", "-", document=chaos.manifest(), check=True)
            if not chaos.settle(RETURN_SECONDS):
                raise Failed("the VM does not start")
            for number, name in enumerate(chosen(dice, count), 1):
                if interrupted:
                    print(f"interrupted before action {number}", flush=True)
                    break
                watcher.doing = f"action {number}, {name}"
                getattr(chaos, name)()
                done[name] += 1
                if number % 10 == 0:
                    looks = sum(watcher.samples.values())
                    print(f"{time.strftime('%X')} {number} actions, {len(watcher.starts)} starts, {looks} samples, "
                          f"at most {max(watcher.samples)} at once", flush=True)  # fmt: skip
                # Most actions run while the previous one is still being handled.
                chaos.settle(20) if dice.random() < SETTLED else time.sleep(dice.uniform(0, 1.5))
                chaos.go_on()
            chaos.go_on(everything=True)
            back = chaos.settle(RETURN_SECONDS if not interrupted else 20)
            if not back:
                print(chaos.ask("get", "vm,vmi,pods", "-o", "yaml"), file=sys.stderr)
        finally:
            chaos.go_on(everything=True)
            watcher.stop()
            thread.join()
    return watcher, done, back


def table(watcher: Watcher, done: Counter[str], back: bool) -> str:
    """The result as text. Pure."""
    width = max(len(_title(name)) for name in ACTIONS)
    lines = [f"{_title(name):<{width}}  {done[name]:>4}" for name in ACTIONS if done[name]]
    looks = sum(watcher.samples.values())
    counts = ", ".join(f"{count} in {watcher.samples[count] / looks:.1%}" for count in sorted(watcher.samples))
    lines += [
        "-" * (width + 6),
        f"{'actions':<{width}}  {sum(done.values()):>4}",
        f"{'QEMUs started':<{width}}  {len(watcher.starts):>4}",
        f"{'maximum number of concurrent QEMUs':<{width}}  {max(watcher.samples, default=0):>4}",
        f"{'VM runs at the end':<{width}}  {'yes' if back else 'NO':>4}",
        f"processes found in {looks} samples: {counts}",
    ]
    return "\n".join([*lines, *(f"TWO COPIES: {each}" for each in watcher.doubles[:20])])


def _title(name: str) -> str:
    return str(getattr(Chaos, name).__doc__)


def main(argv: list[str] | None = None) -> int:
    """Exit status as in the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m bench.chaos", description="Never two copies of one VM.")
    parser.add_argument("--actions", type=int, default=200, help="number of actions (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=None, help="seed of the random actions (default: random)")
    arguments = parser.parse_args(argv)
    seed = secrets.randbelow(1 << 32) if arguments.seed is None else arguments.seed
    print(f"seed {seed}", flush=True)
    try:
        watcher, done, back = run(arguments.actions, seed)
    except Failed as failure:
        print(f"chaos: {failure}", file=sys.stderr)
        return 2
    print(table(watcher, done, back))
    return 0 if back and not watcher.doubles else 1


if __name__ == "__main__":
    sys.exit(main())

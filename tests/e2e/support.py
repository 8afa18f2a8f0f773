"""Helpers of the e2e tests: kubectl, a namespace per module, waiting, and a handle on one virtual machine."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import secrets
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pytest

from tests.waiting import NotYet, wait_for

Json = dict[str, Any]
T = TypeVar("T")

ROOT = Path(__file__).resolve().parents[2]
EXISTING = os.environ.get("HYPERLET_CLUSTER") == "existing"
"""An existing cluster is used: its nodes, their processes and their disks are not accessible."""
# KUBECONFIG is used only then: these tests power off nodes, and must not run on any configured cluster.
RUN = Path(os.environ.get("HYPERLET_RUN") or ROOT / ".run")
KUBECONFIG = Path(os.environ["KUBECONFIG"]) if EXISTING else RUN / "kubeconfig"
SYSTEM = "hyperlet"
"""The namespace of controller and handler."""

BOOT = 90.0
"""Timeout in seconds for a guest that boots in software emulation on a busy host; a boot takes a few."""


class KubectlError(NotYet):
    """kubectl failed; the message is its output."""


class Kubectl:
    """kubectl against one cluster, optionally in one namespace."""

    def __init__(self, kubeconfig: Path, namespace: str = "default") -> None:
        self.kubeconfig = kubeconfig
        self.namespace = namespace

    def __call__(self, *args: str, stdin: str | None = None, check: bool = True) -> str:
        """Standard output. Raises KubectlError with the error output (with `check=False` it is returned instead)."""
        done = subprocess.run(
            self.command(*args), input=stdin, text=True, capture_output=True, check=False, errors="replace", timeout=300
        )
        if done.returncode == 0:
            return done.stdout
        words = done.stderr.strip() or done.stdout.strip()
        if check:
            raise KubectlError(f"kubectl {' '.join(args)}: {words}")
        return words

    def command(self, *args: str) -> list[str]:
        """The argument list, for callers that start the process themselves."""
        return ["kubectl", f"--kubeconfig={self.kubeconfig}", f"--namespace={self.namespace}", *args]

    def get(self, kind: str, name: str) -> Json | None:
        """One object, or None."""
        text = self("get", kind, name, "-o", "json", "--ignore-not-found")
        return json.loads(text) if text.strip() else None

    def items(self, kind: str, *args: str) -> list[Json]:
        """A list of objects."""
        listing: list[Json] = json.loads(self("get", kind, "-o", "json", *args))["items"]
        return listing

    def in_namespace(self, namespace: str) -> Kubectl:
        """The same cluster, another namespace."""
        return Kubectl(self.kubeconfig, namespace)


def project(*args: str) -> str:
    """Output of `python -m ...`, a command of this project. Raises AssertionError with its output when it fails."""
    if EXISTING and args[0] == "cluster":
        pytest.skip("needs nodes of its own")
    done = subprocess.run([sys.executable, "-m", *args], cwd=ROOT, text=True, capture_output=True, check=False)
    assert done.returncode == 0, f"python -m {' '.join(args)}: {done.stdout}{done.stderr}"
    return done.stdout


@functools.cache
def image(name: str) -> str:
    """The reference of an image that `make up` built and loaded onto the nodes."""
    built: dict[str, dict[str, str]] = json.loads(project("images", "list", "--json"))
    assert name in built, f"no image is called {name}: there are {', '.join(built)}"
    return built[name]["ref"]


def deployed_image(kubectl: Kubectl, role: str) -> str:
    """The reference of the image that a role runs from in this cluster: launcher or cluster."""
    for workload in kubectl.in_namespace(SYSTEM).items("deployments"):
        for container in workload["spec"]["template"]["spec"]["containers"]:
            if role == "cluster":
                return str(container["image"])
            for variable in container.get("env", []):
                if variable["name"] == "HYPERLET_LAUNCHER_IMAGE":
                    return str(variable["value"])
    raise AssertionError(f"no workload in the namespace {SYSTEM} names the image of {role}")


def container_statuses(pod: Json) -> list[Json]:
    """Statuses of all containers of a pod, init containers and sidecars included."""
    status = pod["status"]
    return [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]


def assert_stays_true(holds: Callable[[], bool], what: str, *, seconds: float = 4) -> None:
    """Assert that a condition remains true for `seconds`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert holds(), f"did not stay true: {what}"
        time.sleep(0.5)


def conditions(thing: Json | None) -> dict[str, Json]:
    """Conditions of an object by type."""
    return {c["type"]: c for c in ((thing or {}).get("status") or {}).get("conditions") or []}


def http(url: str, *, method: str = "GET", body: bytes | None = None) -> str:
    """The response body. Raises OSError (also for an error status), ValueError for a response that is not HTTP."""
    request = urllib.request.Request(url, data=body, method=method)
    try:
        with urllib.request.urlopen(request, timeout=4) as answer:
            text: str = answer.read().decode()
            return text
    except urllib.error.HTTPError as refusal:
        raise OSError(f"{method} {url}: {refusal.code} {refusal.read().decode(errors='replace').strip()}") from refusal


class Guest:
    """The web server inside a guest, which reports the guest's state."""

    def __init__(self, address: str) -> None:
        self.url = f"http://{address}"

    def report(self) -> Json:
        """Hostname, boot id, counter, addresses, disks, cloud-init data."""
        told: Json = json.loads(http(f"{self.url}/"))
        return told

    def power_off(self) -> None:
        """Power off from inside the guest."""
        http(f"{self.url}/poweroff", method="POST")

    def write(self, disk: str, text: str) -> None:
        """Write a text to the start of an empty disk (named by device or serial), and flush it."""
        http(f"{self.url}/disk/{disk}", method="PUT", body=text.encode())

    def read(self, disk: str) -> str | None:
        """The text that `write` stored, or None if there is none."""
        try:
            return http(f"{self.url}/disk/{disk}")
        except OSError as refusal:
            if " 404 No such file" in str(refusal):
                return None
            raise


@dataclass
class E2eNamespace:
    """A namespace, and the VMs created in it."""

    kubectl: Kubectl
    machines: list[VmUnderTest] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.kubectl.namespace

    def apply(self, *manifests: Json) -> str:
        """`kubectl apply`, several objects at once. Raises KubectlError."""
        listing = {"apiVersion": "v1", "kind": "List", "items": list(manifests)}
        return self.kubectl("apply", "-f", "-", stdin=json.dumps(listing))

    def apply_vm(self, manifest: Json) -> VmUnderTest:
        """Apply a VirtualMachine (or an instance) and return the handle on it."""
        self.apply(manifest)
        return self.existing_vm(manifest["metadata"]["name"])

    def existing_vm(self, name: str) -> VmUnderTest:
        """The handle on an existing VM or VMI."""
        machine = VmUnderTest(self, name)
        self.machines.append(machine)
        return machine

    def events(self, name: str) -> list[str]:
        """`Reason: message` of every Event about objects of that name, and about launcher pods of that VM."""
        pod = f"virt-launcher-{name}-"
        return [
            f"{event['reason']}: {event.get('message', '')}"
            for event in self.kubectl.items("events")
            if event["involvedObject"]["name"] == name or event["involvedObject"]["name"].startswith(pod)
        ]

    def python_pod(self, name: str, node: str | None = None) -> str:
        """Create an idle pod with Python (on `node`, if given), wait until it is Ready, and return its name."""
        spec: Json = {
            "terminationGracePeriodSeconds": 0,
            "containers": [
                {
                    "name": "main",
                    "image": deployed_image(self.kubectl, "cluster"),
                    "command": ["python3", "-c", "import time; time.sleep(3600)"],
                }
            ],
        }
        if node:
            spec["nodeName"] = node
        self.apply({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec})
        self.kubectl("wait", "--for=condition=Ready", "--timeout=60s", f"pod/{name}")
        return name

    def fetch_from(self, pod: str, url: str) -> Json:
        """The JSON that a web server returns to a request from a pod."""
        script = "import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1], timeout=4).read().decode())"
        told: Json = json.loads(self.kubectl("exec", pod, "--", "python3", "-c", script, url))
        return told

    def clear(self) -> None:
        """Delete all VMs and VMIs and wait for it, then the namespace without waiting."""
        with contextlib.suppress(KubectlError):
            self.kubectl("delete", "vm,vmi", "--all", "--timeout=90s", "--wait=true")
        self.kubectl("delete", "namespace", self.name, "--wait=false", "--ignore-not-found")


@dataclass
class VmUnderTest:
    """Handle on one VirtualMachine, or on a standalone VirtualMachineInstance, through kubectl."""

    space: E2eNamespace
    name: str

    @property
    def kubectl(self) -> Kubectl:
        return self.space.kubectl

    def vm(self) -> Json | None:
        return self.kubectl.get("vm", self.name)

    def vmi(self) -> Json | None:
        return self.kubectl.get("vmi", self.name)

    def pods(self) -> list[Json]:
        """Its launcher pods, the ended ones too."""
        return self.kubectl.items("pods", f"--selector=vm.kubevirt.io/name={self.name}")

    def active_pods(self) -> list[Json]:
        """Its launcher pods that have not ended."""
        return [pod for pod in self.pods() if pod["status"].get("phase") not in ("Succeeded", "Failed")]

    def pod(self) -> Json:
        """Its one launcher pod that has not ended. Raises AssertionError when there are none or several."""
        living = self.active_pods()
        assert len(living) == 1, f"{self.name} has {len(living)} living launcher pods\n{self.diagnostics()}"
        return living[0]

    def status(self) -> str:
        """The VM's printableStatus; empty while there is none."""
        return str(((self.vm() or {}).get("status") or {}).get("printableStatus", ""))

    def phase(self) -> str:
        """The VMI's phase; empty when there is no VMI."""
        return str(((self.vmi() or {}).get("status") or {}).get("phase", ""))

    def uid(self) -> str:
        """The VMI's UID; empty when there is no VMI."""
        return str(((self.vmi() or {}).get("metadata") or {}).get("uid", ""))

    def node(self) -> str:
        """Where it runs."""
        return str(((self.vmi() or {}).get("status") or {}).get("nodeName", ""))

    def until_status(self, *wanted: str, seconds: float = BOOT) -> VmUnderTest:
        """Wait for one of these printableStatus."""
        wait_for(
            lambda: self.status() in wanted,
            f"{self.name} is {' or '.join(wanted)}",
            seconds=seconds,
            explain=self.diagnostics,
        )
        return self

    def until_phase(self, *wanted: str, seconds: float = BOOT) -> VmUnderTest:
        """Wait for one of these phases of the VMI."""
        what = f"the instance of {self.name} is {' or '.join(wanted)}"
        wait_for(lambda: self.phase() in wanted, what, seconds=seconds, explain=self.diagnostics)
        return self

    def until_replaced(self, old: str, seconds: float = BOOT) -> None:
        """Wait until another instance runs than the one of that UID."""
        wait_for(
            lambda: self.uid() not in ("", old) and self.phase() == "Running",
            f"a new instance of {self.name} runs",
            seconds=seconds,
            explain=self.diagnostics,
        )

    def until_gone(self, seconds: float = 60) -> None:
        """Wait until no VM, VMI or launcher pod of this name is left."""
        wait_for(
            lambda: not self.vm() and not self.vmi() and not self.pods(),
            f"nothing is left of {self.name}",
            seconds=seconds,
            explain=self.diagnostics,
        )

    def until_stopped(self, seconds: float = 60) -> None:
        """Wait until the VM is Stopped and no pod of it is left alive."""
        self.until_status("Stopped", seconds=seconds)
        wait_for(
            lambda: not self.active_pods(),
            f"no launcher pod of {self.name} lives",
            explain=self.diagnostics,
        )

    def guest(self) -> Guest:
        """The guest at the address the VMI reports. Raises KeyError while it reports none."""
        interfaces = ((self.vmi() or {}).get("status") or {})["interfaces"]
        return Guest(next(each["ipAddress"] for each in interfaces if each.get("ipAddress")))

    def answer(self, *, other_than: str = "", seconds: float = BOOT) -> Json:
        """Wait until the guest (of another boot than `other_than`) answers, and return its report."""

        def asked() -> Json | None:
            told = self.guest().report()
            return told if told["bootId"] != other_than else None

        return wait_for(asked, f"{self.name}'s guest answers", seconds=seconds, explain=self.diagnostics)

    def patch(self, change: Json, *, subresource: str = "") -> None:
        """Merge a change into the VM (`subresource`: into its status)."""
        extra = [f"--subresource={subresource}"] if subresource else []
        self.kubectl("patch", "vm", self.name, "--type=merge", *extra, "-p", json.dumps(change))

    def run(self, strategy: str) -> None:
        """Set the runStrategy."""
        self.patch({"spec": {"runStrategy": strategy}})

    def ask(self, action: str) -> None:
        """Ask for a Start or Stop, as the start and stop verbs do: a request in the VM's status."""
        request: Json = {"action": action}
        if vmi := self.vmi():
            request["uid"] = vmi["metadata"]["uid"]
        self.patch({"status": {"stateChangeRequests": [request]}}, subresource="status")

    def log(self) -> str:
        """What `kubectl logs` shows of the living (or last) launcher pod."""
        return self.kubectl("logs", f"--selector=vm.kubevirt.io/name={self.name}", "--tail=-1", check=False)

    @contextlib.contextmanager
    def follow_log(self) -> Iterator[Callable[[], str]]:
        """`kubectl logs -f` of the launcher pod; yields a function that returns all of it at the pod's end."""
        command = self.kubectl.command("logs", "-f", self.pod()["metadata"]["name"])
        with subprocess.Popen(
            command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, errors="replace"
        ) as tail:

            def rest() -> str:
                return tail.communicate(timeout=60)[0]

            try:
                yield rest
            finally:
                tail.kill()

    def events(self) -> list[str]:
        return self.space.events(self.name)

    def user_messages(self) -> list[str]:
        """All messages for the user: status, conditions with reason and message, Events."""
        said = [f"status {self.status()}"]
        for thing in (self.vm(), self.vmi()):
            said += [
                f"{c['type']}={c['status']} {c.get('reason', '')}: {c.get('message', '')}"
                for c in conditions(thing).values()
            ]
        return said + self.events()

    def until_condition_message(self, *words: str, seconds: float = 60) -> str:
        """Wait until the message of a condition of the VM contains all these words, and return it."""

        def told() -> str | None:
            said = [str(c.get("message", "")) for c in conditions(self.vm()).values()]
            return next((each for each in said if all(word.lower() in each.lower() for word in words)), None)

        what = f"a condition of the VM {self.name} contains: {', '.join(words)}"
        return wait_for(told, what, seconds=seconds, explain=self.diagnostics)

    def until_message(self, *words: str, seconds: float = 60) -> str:
        """Wait until one of `user_messages` contains all these words, and return it."""

        def told() -> str | None:
            return next(
                (said for said in self.user_messages() if all(word.lower() in said.lower() for word in words)), None
            )

        return wait_for(
            told,
            f"a message for the user about {self.name} contains: {', '.join(words)}",
            seconds=seconds,
            explain=self.diagnostics,
        )

    def delete(self, seconds: float = 60) -> None:
        """Delete the VM and wait until its end; the kubelet may take a few seconds more to remove the ended pod."""
        self.kubectl("delete", "vm", self.name, "--wait=false", "--ignore-not-found")
        wait_for(
            lambda: not self.vm() and not self.vmi() and not self.active_pods(),
            f"{self.name} has gone",
            seconds=seconds,
            explain=self.diagnostics,
        )

    def discard(self) -> None:
        """Delete the VM without waiting; the module's namespace fixture waits at the end."""
        self.kubectl("delete", "vm", self.name, "--wait=false", "--ignore-not-found")

    def diagnostics(self) -> str:
        """State, Events and logs for a failure message."""
        parts = [f"---- {self.name} in {self.space.name}", *self.user_messages()]
        for kind in ("vm", "vmi"):
            with contextlib.suppress(KubectlError):
                thing = self.kubectl.get(kind, self.name)
                parts.append(f"---- {kind} status: {json.dumps((thing or {}).get('status'))}")
        with contextlib.suppress(KubectlError):
            for pod in self.pods():
                parts.append(f"---- pod {pod['metadata']['name']}: {json.dumps(pod['status'])}")
        parts.append(f"---- launcher log (end)\n{self.log()[-3000:]}")
        parts.append(system_logs(self.kubectl.in_namespace(SYSTEM), self.name))
        return "\n".join(parts)


def system_logs(kubectl: Kubectl, word: str) -> str:
    """The last log lines of controller and handlers that contain a word."""
    lines = []
    with contextlib.suppress(KubectlError):
        for pod in kubectl.items("pods"):
            name = pod["metadata"]["name"]
            log = kubectl("logs", name, "--tail=400", "--all-containers", check=False).splitlines()
            lines += [f"{name}: {line}" for line in log if word in line or "Traceback" in line][-12:]
    return "\n".join(["---- controller and handlers", *lines])


def create_namespace(kubectl: Kubectl, title: str) -> E2eNamespace:
    """Create a namespace with a unique name, ready for pods."""
    name = f"e2e-{title}-{secrets.token_hex(3)}"
    kubectl("create", "namespace", name)
    inside = kubectl.in_namespace(name)
    # Pods are refused until the namespace's service account is there.
    wait_for(lambda: inside.get("serviceaccount", "default"), f"namespace {name} has its service account")
    return E2eNamespace(inside)

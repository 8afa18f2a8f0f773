"""`make up` and `make down`: a test cluster with hyperlet and an example VM.

`python -m deploy.hyperlet up` runs all missing steps, in this order: cluster, images, deployment, example VM.
With `HYPERLET_CLUSTER=existing` and `KUBECONFIG` set it deploys to that cluster; `HYPERLET_REGISTRY` is then the
registry that images are pushed to and pulled from.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from cluster import binaries
from cluster.console import ClusterError, ProgressConsole, report_error
from cluster.kubectl import Kubectl
from cluster.paths import KUBECONFIG, LOGS, ROOT, RUN
from deploy import prerequisites

NAMESPACE = "hyperlet"
ROLES = ("launcher", "node", "cluster")
EXAMPLE_GUEST = "guest-tiny"
EXAMPLE = ROOT / "examples" / "vm.yaml"
WAIT_SECONDS = 300


def run(console: ProgressConsole, label: str, command: Sequence[str]) -> None:
    """Runs one of the project's Python modules with inherited output. Raises ClusterError if it fails."""
    console.say(label)
    done = subprocess.run([sys.executable, *command], cwd=ROOT, check=False)
    if done.returncode:
        raise ClusterError(
            f"{label.lower()} failed",
            remedy=f"see the message above, then run the command again ({' '.join(command)})",
        )


def built_images() -> dict[str, dict[str, str]]:
    """Name → {ref, archive} of every image whose archive exists."""
    done = subprocess.run(
        [sys.executable, "-m", "images", "list", "--json"], cwd=ROOT, text=True, capture_output=True, check=False
    )
    if done.returncode:
        raise ClusterError(f"python -m images list: {done.stderr.strip()}", remedy="make images")
    listing: dict[str, dict[str, str]] = json.loads(done.stdout)
    return {name: image for name, image in listing.items() if Path(image["archive"]).exists()}


def has_image_volumes(kubectl: Kubectl, seconds: float = 30) -> bool:
    """Whether the API server supports image volumes, detected by a dry-run create of a pod.

    Without support, it drops or refuses the volume. Any other refusal (a namespace without service account,
    a policy) is inconclusive: after `seconds` support is assumed.
    """
    container = {"name": "trial", "image": "hyperlet.local/trial:1"}
    volume = {"name": "trial", "image": {"reference": "hyperlet.local/trial:1"}}
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "hyperlet-trial", "namespace": "default"},
        "spec": {"containers": [container], "volumes": [volume]},
    }
    trial = ("create", "--dry-run=server", "--validate=false", "-o", "json", "-f", "-")
    deadline = time.monotonic() + seconds
    while True:
        try:
            kept = json.loads(kubectl(*trial, stdin=json.dumps(pod)))
        except ClusterError as refusal:
            if "spec.volumes" in str(refusal):
                return False
            if time.monotonic() > deadline:
                return True
            time.sleep(0.5)
        else:
            return any("image" in each for each in kept["spec"].get("volumes", []))


def overlay(images: dict[str, dict[str, str]], registry: str, components: Sequence[str] = ()) -> Path:
    """Writes a kustomization to `.run/deploy` that sets the built images in `manifests/`, with these components."""
    folder = RUN / "deploy"
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for role in ROLES:
        reference = images[role]["ref"]
        name, tag = (pushed_name(reference, registry) if registry else reference).rsplit(":", 1)
        entries.append({"name": f"hyperlet.local/{role}", "newName": name, "newTag": tag})
    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": [os.path.relpath(ROOT / "manifests", folder)],
        "components": [os.path.relpath(ROOT / "manifests" / "components" / name, folder) for name in components],
        # Repeated here: an overlay does not inherit the field specs of images.
        "configurations": ["image-references.yaml"],
        "images": entries,
    }
    (folder / "kustomization.yaml").write_text(json.dumps(kustomization, indent=2))
    (folder / "image-references.yaml").write_text((ROOT / "manifests" / "image-references.yaml").read_text())
    return folder


def pushed_name(reference: str, registry: str) -> str:
    """`hyperlet.local/guests/tiny:1` → `registry.example/guests/tiny:1`."""
    return f"{registry}/{reference.partition('/')[2]}"


def push(console: ProgressConsole, images: dict[str, dict[str, str]], registry: str) -> None:
    """Push the deployed images and the example's disk to the registry that the existing cluster pulls from."""
    for name in (*ROLES, EXAMPLE_GUEST):
        target = pushed_name(images[name]["ref"], registry)
        with console.step(f"push {target}"):
            done = subprocess.run(
                ["skopeo", "copy", f"docker-archive:{images[name]['archive']}", f"docker://{target}"],
                text=True, capture_output=True, check=False,
            )  # fmt: skip
            if done.returncode:
                raise ClusterError(
                    f"cannot push {target}: {done.stderr.strip()}",
                    remedy="log in to the registry (skopeo login) and try again",
                )


def wait(
    console: ProgressConsole, label: str, ready: Callable[[], str | None], remedy: str, seconds: float = WAIT_SECONDS
) -> None:
    """Poll until `ready` returns None. Raises ClusterError with its last result on timeout."""
    deadline = time.monotonic() + seconds
    with console.step(label):
        while (missing := ready()) is not None:
            if time.monotonic() > deadline:
                raise ClusterError(f"{label}: timed out after {seconds:.0f} s: {missing}", remedy=remedy)
            time.sleep(0.2)


def workloads_ready(kubectl: Kubectl, namespace: str = NAMESPACE) -> str | None:
    """None if all workloads of a namespace are updated and ready, else what is missing."""
    listing = kubectl.json("get", "deployments,daemonsets", f"--namespace={namespace}")
    items: list[dict[str, dict[str, object]]] = listing["items"] if listing else []  # type: ignore[assignment]
    if not items:
        return "no workloads yet"
    for item in items:
        spec, status = item["spec"], item["status"]
        name = item["metadata"]["name"]
        if status.get("observedGeneration") != item["metadata"].get("generation"):
            return f"{name} is not observed yet"
        wanted = status.get("desiredNumberScheduled", spec.get("replicas", 1))
        updated = status.get("updatedNumberScheduled", status.get("updatedReplicas", 0))
        ready = status.get("numberReady", status.get("readyReplicas", 0))
        if not wanted or updated != wanted or ready != wanted:
            return f"{name}: {ready or 0} of {wanted} ready"
    return None


def nodes_schedulable(kubectl: Kubectl) -> str | None:
    """None if a node is labelled schedulable by its handler, else what is missing."""
    listing = kubectl.json("get", "nodes", "--selector=kubevirt.io/schedulable=true")
    items: list[object] = listing["items"] if listing else []  # type: ignore[assignment]
    return None if items else "no node has label kubevirt.io/schedulable=true"


def vm_status(kubectl: Kubectl, name: str) -> str | None:
    """None if the VM is running and ready, else its printableStatus and conditions."""
    vm = kubectl.json("get", "virtualmachine", name)
    status: dict[str, object] = vm.get("status", {}) if vm else {}  # type: ignore[assignment]
    if status.get("ready") is True and status.get("printableStatus") == "Running":
        return None
    conditions: list[dict[str, str]] = status.get("conditions", [])  # type: ignore[assignment]
    messages = [f"{c['type']}: {c['message']}" for c in conditions if c.get("message")]
    return " — ".join([f"virtual machine {name} is {status.get('printableStatus', 'missing')}", *messages])


def answer(address: str) -> str:
    """The response of the guest's web server, or an empty string."""
    done = subprocess.run(["curl", "-s", "-m", "2", f"http://{address}/"], text=True, capture_output=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""


def example(console: ProgressConsole, kubectl: Kubectl, guest: str, curl: bool) -> None:
    """Apply examples/vm.yaml with this disk image, wait until it runs and (with `curl`) responds to HTTP."""
    kubectl("apply", "-f", "-", stdin=EXAMPLE.read_text().replace("hyperlet.local/guests/tiny:1", guest))
    wait(console, "virtual machine hello runs", lambda: vm_status(kubectl, "hello"), "kubectl describe vm,vmi hello")
    if not curl:
        return
    address = kubectl("get", "service", "hello", "--output=jsonpath={.spec.clusterIP}")
    response: list[str] = []

    def answered() -> str | None:
        response[:] = [answer(address)]
        return None if response[0] else f"http://{address}/ does not respond"

    wait(console, "its guest responds through its Service", answered, "kubectl logs -l vm.kubevirt.io/name=hello", 120)
    console.say(f"\n  $ curl http://{address}/\n  {response[0]}")


def apply(console: ProgressConsole, kubectl: Kubectl, folder: Path, emulation: bool) -> None:
    """Apply the manifests and wait until all components are ready."""
    with console.step("apply manifests/"):
        kubectl("apply", "-k", str(folder))
    with console.step("CRDs established"):
        kubectl(
            "wait",
            "--for=condition=Established",
            "--timeout=60s",
            "crd",
            "--selector=app.kubernetes.io/part-of=hyperlet",
        )
    if emulation:
        with console.step("allow software emulation (developerConfiguration.useEmulation)"):
            kubectl("apply", "-f", str(ROOT / "cluster" / "kubevirt-emulation.yaml"))
    wait(console, "controller, gateway and handlers ready", lambda: workloads_ready(kubectl),
         f"kubectl -n {NAMESPACE} get pods; kubectl -n {NAMESPACE} describe pods")  # fmt: skip
    wait(
        console,
        "a node is schedulable for virtual machines",
        lambda: nodes_schedulable(kubectl),
        f"kubectl -n {NAMESPACE} logs ds/hyperlet-handler -c handler",
    )


NEXT = """
Next:
  export KUBECONFIG={kubeconfig}
{first}  kubectl get vm,vmi                     # status, node and IP address
  kubectl describe vmi hello             # its conditions and events
  .venv/bin/hyperctl console hello       # log in as tiny, password hyperlet; ctrl-] disconnects
  .venv/bin/hyperctl stop hello          # shut it down; start it again with `start`
  {down}
"""
FIRST = "  kubectl apply -f examples/vm.yaml      # example virtual machine; nodes must be able to pull its image\n"


def up(console: ProgressConsole) -> None:
    """Runs all missing steps, in order."""
    existing = os.environ.get("HYPERLET_CLUSTER") == "existing"
    registry = os.environ.get("HYPERLET_REGISTRY", "")
    if existing:
        kubeconfig = Path(os.environ.get("KUBECONFIG") or Path.home() / ".kube" / "config")
        if not kubeconfig.is_file():
            raise ClusterError("HYPERLET_CLUSTER=existing needs a cluster", remedy="set KUBECONFIG to its kubeconfig")
    else:
        kubeconfig = KUBECONFIG
    console.say("Prerequisites")
    prerequisites.prepare(console, (*ROLES, EXAMPLE_GUEST), cluster=not existing)
    images = built_images()
    if not existing:
        archives = [f"--image={image['archive']}" for image in images.values()]
        run(console, "Cluster", ["-m", "cluster", "up", *archives])
        if binaries.find(binaries.DNS) is not None:
            run(console, "DNS", ["-m", "cluster", "dns"])
        else:
            console.say("  · the cluster has no DNS: 'python3 -m cluster dns' builds and deploys CoreDNS")
        # For examples/vm-bridge.yaml: a bridge to a physical network, on both nodes.
        run(console, "Bridge", ["-m", "cluster", "bridge", "br1", "--port", "eth1"])
    if registry:
        push(console, images, registry)
    console.say("Hyperlet")
    kubectl = Kubectl(kubeconfig)
    components = [] if has_image_volumes(kubectl) else ["containerd-socket"]
    apply(console, kubectl, overlay(images, registry, components), emulation=not existing)
    with_example = not existing or bool(registry)
    if with_example:
        guest = images[EXAMPLE_GUEST]["ref"]
        example(console, kubectl, pushed_name(guest, registry) if registry else guest, curl=not existing)
    console.summary("up")
    down = (
        "make down                              # stop everything"
        if not existing
        else f"kubectl delete -k {ROOT / 'manifests'}"
    )
    first = "" if with_example else FIRST
    console.say(NEXT.format(kubeconfig=os.path.relpath(kubeconfig), first=first, down=down))


def down(console: ProgressConsole) -> None:
    """Stop the cluster on this machine. Refuses to touch an existing cluster."""
    if os.environ.get("HYPERLET_CLUSTER") == "existing":
        raise ClusterError("cannot take down an existing cluster", remedy="kubectl delete -k manifests/")
    run(console, "Cluster", ["-m", "cluster", "down"])


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0, or 1 with an error message on standard error."""
    parser = argparse.ArgumentParser(
        prog="python -m deploy.hyperlet", description=__doc__.splitlines()[0] if __doc__ else ""
    )
    parser.add_argument("verb", choices=["up", "down"])
    verb = parser.parse_args(argv).verb
    LOGS.mkdir(parents=True, exist_ok=True)
    try:
        {"up": up, "down": down}[verb](ProgressConsole())
    except ClusterError as problem:
        report_error(problem)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Storage for the test cluster: the CSI sidecars, the CRDs of snapshots and the driver, installed on first use."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from pathlib import Path

from cluster import binaries, images, lifecycle, machine, memory, node, paths, state
from cluster import storage_manifests as manifests
from cluster.console import ClusterError, ProgressConsole
from cluster.csi.kinds import KINDS
from cluster.kubectl import Kubectl
from deploy import hyperlet

SIDECARS = ("csi-provisioner", "csi-attacher", "csi-resizer", "csi-snapshotter", "snapshot-controller")
CRD_MODULE = "github.com/kubernetes-csi/external-snapshotter/client/v8"
CRDS = ("volumesnapshotclasses", "volumesnapshotcontents", "volumesnapshots")
LOOP_CONTROL = Path("/dev/loop-control")


def install(console: ProgressConsole) -> None:
    """Install or update the running cluster's storage. Errors: ClusterError."""
    lifecycle.require_root()
    known = lifecycle.required()
    if not LOOP_CONTROL.exists():
        raise ClusterError(
            "this machine has no loop devices, which the volumes of the test cluster need",
            remedy="load the module: modprobe loop",
        )
    if shutil.which("mkfs.xfs") is None:
        raise ClusterError("local volumes need xfsprogs", remedy="run 'python -m cluster deps --tests'")
    kubectl = Kubectl(paths.KUBECONFIG)
    binaries.build(console, binaries.EXTRAS)
    reference, archive = sidecars_image(console)
    with state.locked():
        running = [each.name for each in known.nodes if node.init_record(each.name) is not None]
        images.load(console, [archive], running)
        with console.step("CRDs of volume snapshots"):
            for path in crds(console):
                kubectl("apply", "-f", str(path))
            kubectl("wait", "--for=condition=Established", "--timeout=60s", *(f"crd/{name}" for name in crd_names()))
        with console.step("CSI driver, sidecars, classes"):
            items = manifests.manifests(driver_image(kubectl), reference)
            kubectl("apply", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": items}))
        hyperlet.wait(
            console,
            "storage ready",
            lambda: unready(kubectl, running),
            "kubectl --namespace=storage describe pods",
        )
        with console.step("Start-up memory of the sidecars released") as step:
            step.note = f"{sum(map(memory.page_out, sidecars(running))) >> 20} MiB of programs"
    console.summary("StorageClasses local and shared are available")


def sidecars(nodes: list[str]) -> list[int]:
    """The pids of the sidecars on these nodes."""
    found = []
    for pid in (pid for name in nodes for pid in machine.members(node.group(name))):
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/exe").readlink().name in SIDECARS:
                found.append(pid)
    return found


def driver_image(kubectl: Kubectl) -> str:
    """The image of the driver: the handler's, which is on every node. Errors: ClusterError."""
    template = "{.spec.template.spec.containers[0].image}"
    image = kubectl(
        "get", "daemonset", "hyperlet-handler", f"--namespace={hyperlet.NAMESPACE}", f"--output=jsonpath={template}",
        "--ignore-not-found",
    )  # fmt: skip
    if not image:
        raise ClusterError(
            "the storage driver needs the handler's image, which is not built", remedy="run 'make up' first"
        )
    return image


def sidecars_image(console: ProgressConsole) -> tuple[str, Path]:
    """The reference and the archive of the image with the sidecars, built into the cache if needed."""
    folder = binaries.extras_dir()
    digest = hashlib.sha256()
    for name in SIDECARS:
        with (folder / name).open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    tag = digest.hexdigest()[:12]
    reference = f"hyperlet.local/csi-sidecars:{tag}"
    path = paths.CACHE / f"csi-sidecars-{tag}.tar"
    with console.step("Image of the CSI sidecars") as step:
        step.note = "in the cache"
        if not path.exists():
            images.programs_archive(reference, [folder / name for name in SIDECARS], path)
            step.note = f"{path.stat().st_size >> 20} MiB"
    return reference, path


def crd_names() -> list[str]:
    """Names of the snapshots' CRDs."""
    return [f"{plural}.snapshot.storage.k8s.io" for plural in CRDS]


def crds(console: ProgressConsole) -> list[Path]:
    """The files of the snapshots' CRDs, from the module that the snapshotter is built from."""
    versions = (binaries.module_dir(binaries.EXTRAS) / "go.mod").read_bytes()
    folder = paths.CACHE / f"snapshot-crds-{hashlib.sha256(versions).hexdigest()[:10]}"
    found = [folder / f"snapshot.storage.k8s.io_{plural}.yaml" for plural in CRDS]
    if not all(path.exists() for path in found):
        source = binaries.module_source(console, binaries.EXTRAS, CRD_MODULE) / "config" / "crd"
        folder.mkdir(parents=True, exist_ok=True)
        for path in found:
            shutil.copyfile(source / path.name, path)
    return found


def unready(kubectl: Kubectl, nodes: list[str]) -> str | None:
    """None when every node has registered the drivers and the controller runs, else what is missing."""
    listing = kubectl.json("get", "csinodes")
    items: list[dict[str, dict[str, object]]] = listing["items"] if listing else []  # type: ignore[assignment]
    registered = {str(item["metadata"]["name"]): json.dumps(item["spec"]) for item in items}
    for name in nodes:
        for kind in KINDS.values():
            if kind.driver not in registered.get(name, ""):
                return f"{kind.driver} is not registered on {name}"
    return hyperlet.workloads_ready(kubectl, manifests.NAMESPACE)

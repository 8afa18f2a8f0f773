"""CPU time of an admission review: requests for a full VM and others through both webhooks."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Sequence
from itertools import islice

import msgspec

from api.k8s.meta import Json
from api.kubevirt.configuration import KubeVirtConfiguration
from bench import worst_reviews
from bench.figures import BenchResult, Cell, Figure, FigureTable, percentile
from bench.options import BenchOptions
from bench.session import Session
from gateway.admission import kinds, review
from gateway.admission.webhooks import quick_checks

ROUNDS = 20
REVIEWS = 200
"""Reviews per round: the resolution of process time is too coarse for a single one."""
TARGET_MS = 1.0
WORST_MS = 50.0
SLOWEST = 10
NAMESPACE = "hyperlet"


def full_vm() -> Json:
    """A large but realistic VM: disks, NICs, cloud-init, probes, placement."""
    disks: list[Json] = [
        {"name": f"disk{n}", "bootOrder": n + 1, "disk": {"bus": "virtio"}, "serial": f"serial{n}", "cache": "none"}
        for n in range(8)
    ]
    volumes: list[Json] = [{"name": f"disk{n}", "persistentVolumeClaim": {"claimName": f"claim{n}"}} for n in range(7)]
    volumes.append({"name": "disk7", "cloudInitNoCloud": {"userData": "#cloud-config\n" + "# a line\n" * 50}})
    spec = {
        "architecture": "amd64",
        "domain": {
            "cpu": {"sockets": 1, "cores": 4, "threads": 2, "model": "Haswell"},
            "memory": {"guest": "4Gi"},
            "machine": {"type": "q35"},
            "resources": {"requests": {"cpu": "500m", "memory": "4Gi"}},
            "features": {"acpi": {}, "hyperv": {"relaxed": {}, "vapic": {}, "spinlocks": {"spinlocks": 8191}}},
            "clock": {"utc": {}, "timer": {"hpet": {"present": False}, "pit": {"tickPolicy": "delay"}}},
            "firmware": {"serial": "e4686d2c-6e8d-4335-b8fd-81bee22f4814"},
            "devices": {
                "rng": {},
                "disks": disks,
                "inputs": [{"name": "tablet", "type": "tablet", "bus": "usb"}],
                "interfaces": [{"name": "default", "masquerade": {}, "ports": [{"port": 80}, {"port": 443}]}],
            },
        },
        "networks": [{"name": "default", "pod": {}}],
        "volumes": volumes,
        "nodeSelector": {"disktype": "ssd"},
        "tolerations": [{"key": "vms", "operator": "Exists", "effect": "NoSchedule"}],
        "affinity": {
            "podAntiAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": [
                    {
                        "topologyKey": "kubernetes.io/hostname",
                        "labelSelector": {"matchExpressions": [{"key": "app", "operator": "In", "values": ["web"]}]},
                    }
                ]
            }
        },
        "readinessProbe": {"tcpSocket": {"port": 80}, "periodSeconds": 5},
        "livenessProbe": {"httpGet": {"port": 80, "path": "/"}, "periodSeconds": 5},
        "terminationGracePeriodSeconds": 60,
    }
    template = {"metadata": {"labels": {f"label{n}": "value" for n in range(10)}}, "spec": spec}
    return _object("VirtualMachine", {"runStrategy": "Always", "template": template})


def _object(kind: str, spec: Json) -> Json:
    meta = {"name": "web", "namespace": "default", "labels": {"app": "web"}}
    return {"apiVersion": "kubevirt.io/v1", "kind": kind, "metadata": meta, "spec": spec}


def reviews() -> dict[str, bytes]:
    """AdmissionReview requests, by title."""
    vm = full_vm()
    applied = json.dumps(vm)
    vm["metadata"]["annotations"] = {"kubectl.kubernetes.io/last-applied-configuration": applied}
    stopped = json.loads(json.dumps(vm))
    stopped["spec"]["runStrategy"] = "Halted"
    labelled = json.loads(json.dumps(vm))
    labelled["metadata"]["labels"]["team"] = "blue"
    vmi = _object("VirtualMachineInstance", vm["spec"]["template"]["spec"])
    reported = {**vmi, "status": {"phase": "Running", "nodeName": "node1"}}
    handler = "system:serviceaccount:hyperlet:hyperlet-handler"
    return {
        "create a full VM": _review(vm, None),
        "change its spec": _review(stopped, vm),
        "label it": _review(labelled, vm),
        "create a full VMI": _review(vmi, None),
        "a handler's report": _review(
            {**reported, "status": {**reported["status"], "phase": "Failed"}}, reported, handler
        ),
    }


def _review(new: Json, old: Json | None, user: str = "alice") -> bytes:
    # The API server adds the node name from a handler's token.
    extra = {"authentication.kubernetes.io/node-name": ["node1"]} if user.endswith("hyperlet-handler") else {}
    request = {
        "uid": "705ab4f5-6393-11e8-b7cc-42010a800002",
        "operation": "CREATE" if old is None else "UPDATE",
        "kind": {"group": "kubevirt.io", "version": "v1", "kind": new["kind"]},
        "name": "web",
        "namespace": "default",
        "userInfo": {"username": user, "groups": ["system:authenticated"], "extra": extra},
        "object": new,
        "oldObject": old,
    }
    return msgspec.json.encode({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request})


def mutate(body: bytes) -> bytes:
    """The mutating webhook without HTTP."""
    asked, refusal = quick_checks(body, NAMESPACE)
    return review.answer(asked, refusal or kinds.mutate(asked, KubeVirtConfiguration(), NAMESPACE))


def validate(body: bytes) -> bytes:
    """The validating webhook without HTTP."""
    asked, refusal = quick_checks(body, NAMESPACE)
    return review.answer(asked, refusal or kinds.validate(asked, KubeVirtConfiguration(), NAMESPACE))


def milliseconds(webhook: Callable[[bytes], bytes], body: bytes, count: int) -> float:
    """Mean CPU time of one review out of `count`, in milliseconds."""
    began = time.process_time()
    for _ in range(count):
        webhook(body)
    return (time.process_time() - began) * 1000 / count


def slowest(bodies: Iterable[tuple[str, Json]], shown: int = SLOWEST) -> list[tuple[float, str, str, int]]:
    """CPU ms, webhook, title and bytes of the slowest reviews, slowest first."""
    found = []
    for title, document in bodies:
        body = _review(document, None)
        for name, webhook in (("mutate", mutate), ("validate", validate)):
            taken = milliseconds(webhook, body, 1)
            # Other load only makes a measurement longer, so take the minimum.
            if taken > WORST_MS / 4:
                taken = min(taken, *(milliseconds(webhook, body, 1) for _ in range(4)))
            found.append((taken, name, title, len(body)))
    return sorted(found, reverse=True)[:shown]


def analyse(
    samples: dict[str, dict[str, list[float]]], worst: Sequence[tuple[float, str, str, int]] = ()
) -> BenchResult:
    """Medians. Targets apply to the full VM and to the slowest adversarial review. Pure."""
    result = BenchResult("admission")
    rows: list[list[Cell]] = []
    for title, by_webhook in samples.items():
        medians = {name: percentile(found, 50) for name, found in by_webhook.items()}
        rows.append([title, round(medians["mutate"], 3), round(medians["validate"], 3)])
        if title == "create a full VM":
            for name, value in medians.items():
                result.figures.append(Figure(f"full VM, {name}", value, "ms", TARGET_MS))
    result.tables.append(FigureTable("CPU ms a review (median)", ["review", "mutate", "validate"], rows))
    if worst:
        result.figures.append(Figure("the slowest review that could be made", worst[0][0], "ms", WORST_MS))
        rows = [[round(taken, 1), name, size, title] for taken, name, title, size in worst]
        result.tables.append(
            FigureTable("slowest of the reviews made to be slow", ["CPU ms", "webhook", "bytes", "review"], rows)
        )
    result.notes.append("from the bytes of the AdmissionReview to the bytes of the answer; HTTP and TLS are not in it")
    result.samples = {"milliseconds": samples}
    return result


def run(_session: Session, options: BenchOptions) -> BenchResult:
    """Runs the benchmark. Needs no cluster: measures the local code."""
    samples: dict[str, dict[str, list[float]]] = {}
    for title, body in reviews().items():
        samples[title] = {}
        for name, webhook in (("mutate", mutate), ("validate", validate)):
            milliseconds(webhook, body, REVIEWS)
            samples[title][name] = [milliseconds(webhook, body, REVIEWS) for _ in range(options.rounds(ROUNDS))]
    worst = slowest(islice(worst_reviews.bodies(full_vm), 100 if options.quick else None))
    return analyse(samples, worst)

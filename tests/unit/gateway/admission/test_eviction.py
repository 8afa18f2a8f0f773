"""Evictions of launcher pods: allowed, or refused with 429, and marking of the VMI for evacuation."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
from aiohttp import web

from api.k8s.objects import Pod
from api.kubevirt.configuration import KubeVirtConfiguration
from api.kubevirt.vmi import VirtualMachineInstance
from gateway.admission import webhooks
from gateway.admission.eviction import Decision, decide
from gateway.context import Gateway
from gateway.http.server import application
from gateway.pki.certificates import Certificates
from kit.kube import Kube
from tests.fakes.apiserver import FakeApi

Json = dict[str, Any]
MIGRATABLE = [{"type": "LiveMigratable", "status": "True"}]
NAME = "virt-launcher-web-x"


def vmi(strategy: str | None = None, phase: str = "Running", **status: Any) -> Json:
    spec: Json = {"domain": {"devices": {}}, **({"evictionStrategy": strategy} if strategy else {})}
    meta = {"name": "web", "namespace": "default", "uid": "u"}
    return {"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance", "metadata": meta, "spec": spec,
            "status": {"phase": phase, "nodeName": "node1", **status}}  # fmt: skip


def pod(uid: str = "u", node: str = "node1", **status: Any) -> Json:
    env = {"HYPERLET_NAMESPACE": "default", "HYPERLET_NAME": "web", "HYPERLET_UID": uid}
    compute = {"name": "compute", "env": [{"name": key, "value": value} for key, value in env.items()]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": NAME, "namespace": "default", "uid": "p"},
            "spec": {"nodeName": node, "containers": [compute]}, "status": {"phase": "Running", **status}}  # fmt: skip


def decided(instance: Json, launcher: Json | None = None, default: Any = None) -> Decision:
    config = KubeVirtConfiguration(evictionStrategy=default)
    seen = msgspec.convert(launcher or pod(), Pod), msgspec.convert(instance, VirtualMachineInstance)
    return decide(*seen, config)


TABLE = [
    # strategy of the VMI, of the cluster, migratable -> refused, marked
    (None, None, False, False, False),
    ("None", "LiveMigrate", True, False, False),
    ("LiveMigrate", None, False, True, False),
    ("LiveMigrate", None, True, True, True),
    (None, "LiveMigrate", False, True, False),
    (None, "LiveMigrate", True, True, True),
    ("LiveMigrateIfPossible", None, False, False, False),
    ("LiveMigrateIfPossible", None, True, True, True),
    ("External", None, False, True, True),
    ("External", None, True, True, True),
    (None, "External", False, True, True),
]


@pytest.mark.parametrize(("own", "cluster", "migratable", "refused", "marked"), TABLE)
def test_eviction_decision_per_strategy(
    own: str | None, cluster: str | None, migratable: bool, refused: bool, marked: bool
) -> None:
    instance = vmi(own, conditions=MIGRATABLE if migratable else [])
    found = decided(instance, default=cluster)
    assert (bool(found.refusal), found.mark) == (refused, marked)
    # The message matched by deschedulers.
    if marked:
        assert found.refusal == 'Eviction triggered evacuation of VMI "default/web"'


def test_eviction_of_finished_or_deleted_vmi_is_allowed() -> None:
    ended = {"containerStatuses": [{"name": "compute", "state": {"terminated": {"exitCode": 0}}}], "phase": "Succeeded"}
    deleted = "2026-01-01T00:00:00Z"
    for phase in ("Succeeded", "Failed"):
        assert decided(vmi("External", phase)) == Decision()
    assert decided(vmi("External"), pod(**ended)) == Decision()
    going = vmi("LiveMigrate")
    going["metadata"]["deletionTimestamp"] = deleted
    assert decided(going) == Decision()
    leaving = pod()
    leaving["metadata"]["deletionTimestamp"] = deleted
    assert decided(vmi("External"), leaving) == Decision()


def test_failed_pod_with_running_containers_is_protected() -> None:
    early = pod(phase="Failed", reason="Preempting")
    assert decided(vmi("External"), early).refusal


def test_vmi_is_marked_for_evacuation_once_for_its_node() -> None:
    assert not decided(vmi("External", evacuationNodeName="node1")).mark
    assert decided(vmi("External", evacuationNodeName="node2")).mark
    assert not decided(vmi("External"), pod(node="node2")).mark
    assert decided(vmi("External"), pod(node="node2")).refusal


# ---- through the webhook


@pytest.fixture
async def asked(tmp_path: Path) -> AsyncIterator[Any]:
    async with FakeApi() as api, Kube.connect("test", api.kubeconfig(tmp_path)) as kube:
        app = application(Gateway(kube, "hyperlet", Certificates()), (webhooks.routes,))
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        async with aiohttp.ClientSession(f"http://127.0.0.1:{runner.addresses[0][1]}") as session:

            async def evict(name: str = NAME, **more: Any) -> Json:
                request = {"uid": "r", "operation": "CREATE", "name": name, "namespace": "default",
                           "subResource": "eviction", "object": {"kind": "Eviction"},
                           "kind": {"group": "policy", "version": "v1", "kind": "Eviction"}, **more}  # fmt: skip
                body = {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request}
                async with session.post(webhooks.EVICT, data=json.dumps(body)) as response:
                    assert response.status == 200, await response.text()
                    return (await response.json())["response"]

            yield api, evict
        await runner.cleanup()


async def test_eviction_returns_429_and_marks_vmi(asked: Any) -> None:
    api, evict = asked
    api.put("pods", pod())
    api.put("virtualmachineinstances", vmi("External"))
    dry = await evict(dryRun=True)
    assert (dry["allowed"], dry["status"]["code"]) == (False, 429)
    assert "evacuationNodeName" not in api.find("virtualmachineinstances", "web")["status"]
    answer = await evict()
    assert answer["allowed"] is False and answer["uid"] == "r"
    assert (answer["status"]["code"], answer["status"]["reason"]) == (429, "TooManyRequests")
    assert api.find("virtualmachineinstances", "web")["status"]["evacuationNodeName"] == "node1"


async def test_eviction_of_other_pods_is_allowed(asked: Any) -> None:
    api, evict = asked
    assert (await evict("nginx"))["allowed"]
    assert (await evict())["allowed"], "it is gone"
    api.put("pods", pod(uid="another"))
    assert (await evict())["allowed"], "a launcher without a VMI"
    api.put("virtualmachineinstances", vmi("External"))
    assert (await evict())["allowed"], "the launcher of an earlier VMI of that name"
    assert (await evict(subResource="binding"))["allowed"]

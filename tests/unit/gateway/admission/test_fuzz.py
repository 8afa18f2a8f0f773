"""Any input of the webhooks gets a response, never a 500 or internal details."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from api.kinds.catalog import CATALOG
from api.kubevirt.configuration import KubeVirtConfiguration
from gateway.admission import kinds, review, validation, webhooks
from gateway.context import Gateway
from gateway.http.server import BODY_LIMIT, application
from gateway.pki.certificates import Certificates
from kit.kube import Kube
from tests.fakes.apiserver import FakeApi
from tests.fakes.patches import json_patched
from tests.unit.api.vm_manifests import machine

Json = dict[str, Any]
PATHS = (webhooks.MUTATE, webhooks.VALIDATE)

scalars = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=12)
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
)


def places(document: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every path in a document."""
    found = [path] if path else []
    if isinstance(document, dict):
        for key, child in document.items():
            found += places(child, (*path, key))
    elif isinstance(document, list):
        for index, child in enumerate(document):
            found += places(child, (*path, index))
    return found


DEVICES = {
    "domain.devices.disks.1": {"name": "cd", "cdrom": {"bus": "sata"}, "bootOrder": 2},
    "domain.cpu": {"cores": 2, "model": "host-model", "features": [{"name": "vmx", "policy": "require"}]},
    "domain.resources": {"requests": {"cpu": "1", "memory": "128Mi"}},
    "domain.firmware": {"serial": "abc", "bootloader": {"bios": {}}},
    "domain.clock": {"utc": {"offsetSeconds": 60}, "timer": {"hpet": {"present": False}}},
    "volumes.1": {"name": "cd", "cloudInitNoCloud": {"userData": "#cloud-config"}},
    "readinessProbe": {"tcpSocket": {"port": 80}, "periodSeconds": 3},
    "tolerations": [{"key": "a", "operator": "Exists"}],
    "affinity": {"nodeAffinity": {}},
}


def plain(kind: str, spec: Json) -> Json:
    return {"apiVersion": "kubevirt.io/v1", "kind": kind, "metadata": {"name": "x", "labels": {"a": "b"}}, "spec": spec}


WHOLE = {
    "VirtualMachine": machine(DEVICES),
    "VirtualMachineInstance": plain("VirtualMachineInstance", machine(DEVICES)["spec"]["template"]["spec"]),
    "VirtualMachineInstanceMigration": plain("VirtualMachineInstanceMigration", {"vmiName": "x"}),
    "KubeVirt": plain("KubeVirt", {"configuration": {"developerConfiguration": {"useEmulation": True}}}),
}
PLACES = {kind: places(document) for kind, document in WHOLE.items()}


@st.composite
def spoiled(draw: st.DrawFn) -> Json:
    """An object with random values in random places."""
    kind = draw(st.sampled_from(sorted(WHOLE)))
    document: Json = json.loads(json.dumps(WHOLE[kind]))
    for path in draw(st.lists(st.sampled_from(PLACES[kind]), max_size=4)):
        node: Any = document
        try:
            for step in path[:-1]:
                node = node[step]
            node[path[-1]] = draw(values)
        except (KeyError, IndexError, TypeError):
            continue  # its place is gone already
    return document


def reviewed(kind: str, new: Any, old: Any, user: Any = None) -> bytes:
    request = {
        "uid": "u",
        "operation": "CREATE" if old is None else "UPDATE",
        "kind": {"group": "kubevirt.io", "version": "v1", "kind": kind},
        "namespace": "default",
        "userInfo": user or {"username": "alice"},
        "object": new,
        "oldObject": old,
    }
    return json.dumps({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request}).encode()


def decide(body: bytes) -> list[Json]:
    """The responses of both webhooks."""
    asked = review.parse(body)
    settings_ = KubeVirtConfiguration()
    verdicts = (kinds.mutate(asked, settings_, "hyperlet"), kinds.validate(asked, settings_, "hyperlet"))
    return [json.loads(review.answer(asked, verdict))["response"] for verdict in verdicts]


@settings(max_examples=200, suppress_health_check=[HealthCheck.too_slow])
@given(new=spoiled(), old=st.none() | spoiled())
def test_odd_objects_get_a_decision(new: Json, old: Json | None) -> None:
    kind = new.get("kind") if isinstance(new.get("kind"), str) else "VirtualMachine"
    for response in decide(reviewed(str(kind), new, old)):
        if not response["allowed"]:
            causes = response["status"]["details"]["causes"]
            assert causes and all(cause["message"] for cause in causes)
            assert "Traceback" not in response["status"]["message"]


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(new=spoiled())
def test_mutated_object_is_admitted_again(new: Json) -> None:
    kind = new.get("kind") if isinstance(new.get("kind"), str) else "VirtualMachine"
    asked = review.parse(reviewed(str(kind), new, None))
    verdict = kinds.mutate(asked, KubeVirtConfiguration(), "hyperlet")
    if verdict.faults:
        return
    whole = json_patched(new, list(verdict.patch))
    again = review.parse(reviewed(str(kind), whole, None))
    assert kinds.mutate(again, KubeVirtConfiguration(), "hyperlet").patch in ((), [])
    assert not kinds.validate(again, KubeVirtConfiguration(), "hyperlet").faults


@settings(max_examples=150)
@given(body=st.binary(max_size=200) | values.map(lambda value: json.dumps(value).encode()))
def test_invalid_review_raises_bad_review(body: bytes) -> None:
    with pytest.raises(review.BadReview, match="not an AdmissionReview"):
        review.parse(body)


# ---- over HTTP


Ask = Callable[[str, bytes], Any]


@pytest.fixture
async def ask(tmp_path: Path) -> AsyncIterator[Ask]:
    async with FakeApi() as api, Kube.connect("test", api.kubeconfig(tmp_path)) as kube:
        app = application(Gateway(kube, "hyperlet", Certificates()), (webhooks.routes,))
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        async with aiohttp.ClientSession(f"http://127.0.0.1:{runner.addresses[0][1]}") as session:

            async def send(path: str, body: bytes) -> tuple[int, str]:
                async with session.post(path, data=body) as response:
                    return response.status, await response.text()

            yield send
        await runner.cleanup()


DEEP = b'{"a":' * 3000 + b"1" + b"}" * 3000


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"{}",
        b"\xff\xfe\x00",
        b'{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview"}',
        b'{"apiVersion":"admission.k8s.io/v1beta1","kind":"AdmissionReview","request":{"uid":"u"}}',
        b'{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{"uid":7}}',
        b'{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{"uid":"u","object":[]}}',
        DEEP,
    ],
    ids=lambda body: repr(body[-40:]),
)
async def test_malformed_review_returns_400(ask: Ask, body: bytes) -> None:
    for path in PATHS:
        code, words = await ask(path, body)
        assert code == 400 and "AdmissionReview" in words and len(words) < 500


@pytest.mark.parametrize("depth", [100, 400, 800])
async def test_deeply_nested_objects_get_a_response(ask: Ask, depth: int) -> None:
    deep: Any = 1
    for _ in range(depth):
        deep = {"a": [deep]} if depth % 2 else {"a": deep}
    for kind in (each.name for each in CATALOG.admitted()):
        new = {"apiVersion": "kubevirt.io/v1", "kind": kind, "metadata": {"name": "x"}, "spec": deep}
        for old in (None, {**new, "spec": {"a": deep}}):
            for path in PATHS:
                code, words = await ask(path, reviewed(kind, new, old))
                assert code in (200, 400) and "Traceback" not in words
                if code == 200:
                    assert json.loads(words)["response"]["uid"] == "u"


async def test_a_body_that_is_too_large_is_refused(ask: Ask) -> None:
    for path in PATHS:
        code, _ = await ask(path, b" " * (BODY_LIMIT + 1))
        assert code == 413


async def test_unhandled_exception_returns_generic_500(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise KeyError("secret insides")

    monkeypatch.setattr(validation, "faults", broken)
    code, words = await ask(webhooks.VALIDATE, reviewed("VirtualMachine", machine(), None))
    assert code == 500 and json.loads(words)["kind"] == "Status" and "insides" not in words


async def test_review_gets_a_response(ask: Ask) -> None:
    code, words = await ask(webhooks.VALIDATE, reviewed("VirtualMachine", machine(), None))
    assert code == 200 and json.loads(words)["response"] == {"uid": "u", "allowed": True}

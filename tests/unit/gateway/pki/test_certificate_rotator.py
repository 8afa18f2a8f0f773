"""Rotation of CAs in a Secret by several replicas, and injection of CA bundles."""

from __future__ import annotations

import asyncio
import contextlib
import time
from base64 import b64decode
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from gateway.pki import authorities, ca_injection
from gateway.pki.authorities import INTERNAL, SERVING, Lifetimes
from gateway.pki.certificate_rotator import CertificateRotator
from gateway.pki.certificates import Certificates
from kit.kube import Kube
from tests.fakes.apiserver import FakeApi, Json, Refusal
from tests.waiting import until

LIVES = Lifetimes(80_000.0, 1_000.0)


def configuration(*names: str) -> Json:
    webhooks = [{"name": name, "clientConfig": {"service": {"name": "hyperlet-gateway"}}} for name in names]
    return {"metadata": {"name": ca_injection.NAME}, "webhooks": webhooks}


async def furnish(api: FakeApi) -> None:
    """Creates the objects of the manifests."""
    meta = {"name": "hyperlet-ca", "namespace": "hyperlet"}
    api.put("secrets", {"metadata": dict(meta), "type": "Opaque"})
    api.put("configmaps", {"metadata": dict(meta)})
    api.put("mutatingwebhookconfigurations", configuration("one"))
    api.put("validatingwebhookconfigurations", configuration("one", "two"))
    for name in ca_injection.API_SERVICES:
        api.put("apiservices", {"metadata": {"name": name}, "spec": {"service": {"name": "hyperlet-gateway"}}})


@pytest.fixture
async def api() -> AsyncIterator[FakeApi]:
    async with FakeApi() as server:
        yield server


class Replica:
    """A running rotator. `offset` is how much its clock is ahead."""

    def __init__(self, api: FakeApi, folder: Path) -> None:
        self._api = api
        self._folder = folder
        self.offset = 0.0

    def clock(self) -> float:
        return time.time() + self.offset

    async def __aenter__(self) -> Replica:
        self.kube = Kube.connect("gateway", self._api.kubeconfig(self._folder))
        self.certificates = Certificates("hyperlet", LIVES, self.clock)
        self.rotator = CertificateRotator(self.kube, "hyperlet", self.certificates, self.clock)
        self.task = asyncio.create_task(self.rotator.run())
        return self

    async def __aexit__(self, *_: object) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        await self.kube.close()

    async def until(self, true: Callable[[], object]) -> None:
        def holds() -> object:
            if self.task.done():
                self.task.result()
            return true()

        await until(holds)


def bundles(api: FakeApi) -> list[bytes | None]:
    """All injected CA bundles."""
    found: list[Any] = []
    for plural in ("mutatingwebhookconfigurations", "validatingwebhookconfigurations"):
        for webhook in api.objects[plural, "", ca_injection.NAME]["webhooks"]:
            found.append(webhook["clientConfig"].get("caBundle"))
    found += [api.objects["apiservices", "", name]["spec"].get("caBundle") for name in ca_injection.API_SERVICES]
    return [b64decode(text) if text else None for text in found]


async def test_replicas_share_the_first_ca(api: FakeApi, tmp_path: Path) -> None:
    await furnish(api)
    async with contextlib.AsyncExitStack() as stack:
        replicas = [await stack.enter_async_context(Replica(api, tmp_path)) for _ in range(3)]
        for replica in replicas:
            await replica.until(lambda r=replica: r.rotator.is_healthy and r.rotator.trouble is None)
        bundle = replicas[0].certificates.bundle(SERVING)
        assert {replica.certificates.bundle(SERVING) for replica in replicas} == {bundle}
        assert len({replica.certificates.bundle(INTERNAL) for replica in replicas}) == 1
        assert bundles(api) == [bundle] * 5
        config = api.objects["configmaps", "hyperlet", "hyperlet-ca"]
        assert config["data"] == {"serving.crt": bundle.decode()}
        secret = api.objects["secrets", "hyperlet", "hyperlet-ca"]
        assert len(secret["data"]) == 4, "one key and one certificate for each of two purposes"
        assert not any("PRIVATE" in str(value) for value in config["data"].values())


async def test_nothing_is_written_when_nothing_differs(api: FakeApi, tmp_path: Path) -> None:
    await furnish(api)
    async with Replica(api, tmp_path) as first:
        await first.until(lambda: first.rotator.is_healthy)
    api.calls.clear()
    async with Replica(api, tmp_path) as second:
        await second.until(lambda: second.rotator.is_healthy)
    assert not [call for call in api.calls if call[0] not in ("list", "watch")]


async def test_removed_ca_bundle_is_injected_again(api: FakeApi, tmp_path: Path) -> None:
    await furnish(api)
    async with Replica(api, tmp_path) as replica:
        await replica.until(lambda: None not in bundles(api))
        api.put("validatingwebhookconfigurations", configuration("two", "one", "three"))
        assert None in bundles(api)
        await replica.until(lambda: None not in bundles(api))
        api.put("configmaps", {"metadata": {"name": "hyperlet-ca", "namespace": "hyperlet"}})
        await replica.until(lambda: api.objects["configmaps", "hyperlet", "hyperlet-ca"].get("data"))


async def test_ca_is_rotated_in_time(api: FakeApi, tmp_path: Path) -> None:
    await furnish(api)
    async with Replica(api, tmp_path) as replica:
        await replica.until(lambda: replica.rotator.is_healthy)
        old = replica.certificates.bundle(SERVING)
        leaf = replica.certificates.client

        async def pass_by(seconds: float) -> None:
            replica.offset += seconds
            replica.rotator._changed.set()

        await pass_by(LIVES.authority * 2 / 3)
        await replica.until(lambda: replica.certificates.bundle(SERVING) != old)
        both = replica.certificates.bundle(SERVING)
        assert both.startswith(old), "the old one is still believed"
        await replica.until(lambda: set(bundles(api)) == {both})
        assert replica.certificates.client is not None and leaf is not None
        assert replica.certificates.client.roots != leaf.roots
        await pass_by(LIVES.leaf * 2 + 1)
        await replica.until(lambda: replica.certificates.bundle(SERVING) not in (both, old))
        new = replica.certificates.bundle(SERVING)
        assert both == old + new
        await replica.until(lambda: set(bundles(api)) == {new})
        assert len(api.objects["secrets", "hyperlet", "hyperlet-ca"]["data"]) == 4


async def test_corrupt_ca_is_replaced(api: FakeApi, tmp_path: Path) -> None:
    await furnish(api)
    made = authorities.make(SERVING, time.time() - 5, LIVES)
    data = {key: text for key, text in authorities.change({}, SERVING, [made]).items() if text}
    data[f"serving.{made.created}.key"] = "bm9uc2Vuc2U="
    meta = {"name": "hyperlet-ca", "namespace": "hyperlet"}
    api.put("secrets", {"metadata": meta, "data": {**data, "note": "eA=="}})
    async with Replica(api, tmp_path) as replica:
        await replica.until(lambda: replica.rotator.is_healthy)
        found = api.objects["secrets", "hyperlet", "hyperlet-ca"]["data"]
        assert authorities.read(found, SERVING)[1] == [] and len(authorities.read(found, SERVING)[0]) == 1
        assert found["note"] == "eA==", "what is not ours stays"


async def test_missing_objects_are_reported(api: FakeApi, tmp_path: Path) -> None:
    async with Replica(api, tmp_path) as replica:
        await replica.until(lambda: replica.rotator.trouble and "apply the manifests" in replica.rotator.trouble)
        assert replica.rotator.trouble == "Secret hyperlet/hyperlet-ca not found: apply the manifests"
        assert not replica.certificates.ready and not replica.rotator.is_healthy
        await furnish(api)
        await replica.until(lambda: replica.rotator.is_healthy)


async def test_missing_webhook_configuration_is_reported_and_replica_stays_healthy(
    api: FakeApi, tmp_path: Path
) -> None:
    await furnish(api)
    api.remove("mutatingwebhookconfigurations", ca_injection.NAME, namespace="")
    async with Replica(api, tmp_path) as replica:
        await replica.until(lambda: replica.rotator.is_healthy)
        await replica.until(lambda: "MutatingWebhookConfiguration" in (replica.rotator.trouble or ""))
        api.put("mutatingwebhookconfigurations", configuration("one"))
        await replica.until(lambda: replica.rotator.trouble is None)
        assert None not in bundles(api)


async def test_refused_injection_is_reported_and_others_continue(api: FakeApi, tmp_path: Path) -> None:
    await furnish(api)

    def refuse(verb: str, plural: str, body: Json) -> Refusal | None:
        forbidden = verb == "patch" and plural == "apiservices"
        return Refusal(403, "Forbidden", "apiservices is forbidden") if forbidden else None

    api.refuse = refuse
    async with Replica(api, tmp_path) as replica:
        await replica.until(lambda: bundles(api)[2])
        await replica.until(lambda: "forbidden" in (replica.rotator.trouble or ""))
        assert bundles(api)[3:] == [None, None] and not replica.rotator.is_healthy
        assert replica.certificates.ready

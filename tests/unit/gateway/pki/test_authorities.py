"""Rotation of CAs, simulated over years: peers always trust each other's certificates."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from datetime import UTC, datetime

import aiohttp
import pytest
from aiohttp import web
from cryptography import x509
from cryptography.x509.verification import PolicyBuilder, Store
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.pki import authorities
from gateway.pki.authorities import INTERNAL, PURPOSES, SERVING, Authority, Lifetimes
from gateway.pki.certificates import Certificates
from kit import tls

START = 1_700_000_000.0


class Clock:
    def __init__(self, now: float = START) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def advance(found: dict[str, list[Authority]], clock: Clock, lives: Lifetimes) -> dict[str, list[Authority]]:
    """The CAs after a round of the rotator at a time."""
    new = {}
    for purpose in PURPOSES:
        plan = authorities.plan(found.get(purpose, []), clock(), lives)
        new[purpose] = [*plan.keep, *([authorities.make(purpose, clock(), lives)] if plan.make else [])]
    return new


def believes(bundle: bytes, leaf: bytes, name: str, at: float) -> None:
    """Raises VerificationError unless a client with the bundle accepts the leaf at the time."""
    store = Store(x509.load_pem_x509_certificates(bundle))
    verifier = PolicyBuilder().store(store).time(datetime.fromtimestamp(at, UTC).replace(tzinfo=None))
    verifier.build_server_verifier(x509.DNSName(name)).verify(x509.load_pem_x509_certificate(leaf), [])


@settings(max_examples=15)
@given(
    authority=st.integers(min_value=8, max_value=30),
    lag=st.floats(min_value=0, max_value=0.66),
    step=st.floats(min_value=0.05, max_value=0.3),
)
def test_outdated_bundle_verifies_every_valid_leaf(authority: int, lag: float, step: float) -> None:
    """Times are in leaf lifetimes. A handler's bundle is as old as its certificate: two thirds at most."""
    leaf = 1000.0
    lives, clock = Lifetimes(authority * leaf, leaf), Clock()
    found: dict[str, list[Authority]] = {}
    bundles: deque[tuple[float, set[int]]] = deque()
    leaves: deque[tuple[float, int]] = deque()
    signers = set()
    while clock() < START + 2.5 * lives.authority:
        found = advance(found, clock, lives)
        bundles.append((clock(), {each.created for each in found[SERVING]}))
        signer = authorities.signer(found[SERVING], clock(), lives)
        assert clock() + leaf <= signer.created + lives.authority, "a leaf outlives its authority"
        leaves.append((clock(), signer.created))
        signers.add(signer.created)
        while leaves[0][0] < clock() - leaf:
            leaves.popleft()
        while len(bundles) > 1 and bundles[1][0] <= clock() - lag * leaf:
            bundles.popleft()
        assert {created for _, created in leaves} <= bundles[0][1]
        clock.now += step * leaf
    assert len(signers) >= 3


def test_certificates_verify_through_years_of_rotation() -> None:
    """With real certificates and a verifier with a fake clock."""
    clock, lives = Clock(), Lifetimes(90 * 86400.0, 86400.0)
    certificates, found = Certificates("hyperlet", lives, clock), {}
    old = b""
    seen = set()
    for _ in range(220):
        found = advance(found, clock, lives)
        certificates.update(found)
        assert certificates.client is not None and certificates._serving is not None
        for bundle in filter(None, (old, certificates.bundle(SERVING))):
            believes(bundle, certificates._serving.certificate, "hyperlet-gateway.hyperlet.svc", clock())
        node = certificates.sign_node(tls.public_key(tls.new_key()), "node-1")
        believes(certificates.client.roots, node.certificate, "node-1.node.hyperlet", clock())
        seen |= {each.created for each in found[SERVING]}
        assert len(found[SERVING]) <= 2
        old = certificates.bundle(SERVING)
        clock.now += lives.renewal
        assert certificates.due() == 0
    assert len(seen) >= 3


async def test_no_call_fails_while_everything_is_renewed() -> None:
    """A client calls continuously with the bundle of the previous round, through five rotations."""
    clock, lives = Clock(time.time()), Lifetimes(800.0, 100.0)
    certificates, found = Certificates("hyperlet", lives, clock), {}
    found = advance(found, clock, lives)
    certificates.update(found)
    runner = web.AppRunner(app := web.Application())

    async def hello(_request: web.Request) -> web.Response:
        return web.Response(text="here")

    app.router.add_get("/", hello)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=certificates.server).start()
    port = runner.addresses[0][1]
    answers, shown, end = 0, set(), asyncio.Event()
    bundle = certificates.bundle(SERVING)

    async def call() -> None:
        nonlocal answers
        while not end.is_set():
            context = tls.client_context(bundle)
            connector = aiohttp.TCPConnector(ssl=context, force_close=True)
            async with aiohttp.ClientSession(connector=connector) as session:
                name = "hyperlet-gateway.hyperlet.svc"
                async with session.get(f"https://127.0.0.1:{port}/", server_hostname=name) as response:
                    assert await response.text() == "here"
                    answers += 1

    callers = [asyncio.create_task(call()) for _ in range(3)]
    # Certificates are valid from one hour before creation, so this clock may be ahead by that much.
    while clock.now < time.time() + tls.BACKDATED - 60:
        before = answers
        async with asyncio.timeout(20):
            while answers < before + 4 and not any(caller.done() for caller in callers):  # noqa: ASYNC110
                await asyncio.sleep(0)
        bundle = certificates.bundle(SERVING)
        clock.now += 50
        found = advance(found, clock, lives)
        certificates.update(found)
        shown.add(certificates._made[SERVING][1].created)
    end.set()
    await asyncio.gather(*callers)
    await runner.cleanup()
    assert len(shown) >= 5 and answers > 200


def test_leaf_is_renewed_when_its_ca_is_removed() -> None:
    clock, lives = Clock(), Lifetimes()
    certificates = Certificates("hyperlet", lives, clock)
    first = {purpose: [authorities.make(purpose, clock() - 10, lives)] for purpose in PURPOSES}
    assert certificates.update(first) and not certificates.update(first)
    client = certificates.client
    second = {**first, INTERNAL: [authorities.make(INTERNAL, clock() - 5, lives)]}
    assert certificates.update(second)
    assert client is not None and certificates.client is not None
    assert certificates.client.certificate != client.certificate


def test_new_ca_is_trusted_before_it_signs() -> None:
    clock, lives = Clock(), Lifetimes()
    certificates = Certificates("hyperlet", lives, clock)
    first = {purpose: [authorities.make(purpose, clock(), lives)] for purpose in PURPOSES}
    certificates.update(first)
    before = certificates.client
    both = {purpose: [*first[purpose], authorities.make(purpose, clock() + 1, lives)] for purpose in PURPOSES}
    assert not certificates.update(both)
    assert before is not None and certificates.client is not None
    assert certificates.client.certificate == before.certificate
    assert certificates.client.roots == authorities.bundle(both[INTERNAL]) != before.roots


def test_secret_round_trips() -> None:
    lives = Lifetimes()
    made = {purpose: [authorities.make(purpose, START + n, lives) for n in range(2)] for purpose in PURPOSES}
    data: dict[str, str] = {}
    for purpose in PURPOSES:
        change = authorities.change(data, purpose, made[purpose])
        data.update({key: text for key, text in change.items() if text is not None})
        assert authorities.change(data, purpose, made[purpose]) == {}
    for purpose in PURPOSES:
        assert authorities.read(data, purpose) == (made[purpose], [])
    assert set(authorities.change(data, SERVING, made[SERVING][1:]).values()) == {None}


@pytest.mark.parametrize("spoiled", ["", "!", "bm9uc2Vuc2U="])
def test_unreadable_ca_is_reported_and_skipped(spoiled: str) -> None:
    made = [authorities.make(SERVING, START, Lifetimes())]
    data = {key: text for key, text in authorities.change({}, SERVING, made).items() if text is not None}
    name = f"{SERVING}.{int(START)}.key"
    found, wrong = authorities.read({**data, name: spoiled}, SERVING)
    assert found == [] and wrong and wrong[0].startswith(f"{SERVING}.{int(START)}.crt: ")

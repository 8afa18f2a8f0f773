"""The node's certificate: when it is renewed, and how failures are retried."""

import asyncio
from typing import Any

import pytest

from api.errors import ApiUnavailable
from handler.node import certificate
from handler.node.certificate import NodeCertificate
from kit.tls import TlsIdentity

DAY = 86400.0


class Renewals:
    """`obtain` with the given outcomes, and the pauses between its calls."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, outcomes: list[float | None]) -> None:
        """`outcomes`: seconds until the certificate expires, or None for a failure."""
        self.pauses: list[float] = []
        self._outcomes = outcomes
        self._left = 0.0
        self.certificate = NodeCertificate(None, "node1", clock=lambda: 0.0)  # type: ignore[arg-type]
        monkeypatch.setattr(self.certificate, "obtain", self._obtain)
        monkeypatch.setattr(certificate.tls, "expiry", lambda _: self._left)
        monkeypatch.setattr(certificate.asyncio, "sleep", self._sleep)

    async def _obtain(self) -> TlsIdentity:
        if not self._outcomes:
            raise asyncio.CancelledError
        outcome = self._outcomes.pop(0)
        if outcome is None:
            raise ApiUnavailable("the gateway is away")
        self._left = outcome
        return TlsIdentity(b"certificate", b"key", b"roots")

    async def _sleep(self, seconds: float, *_: Any) -> None:
        self.pauses.append(seconds)


async def test_certificate_is_renewed_after_two_thirds_of_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    renewals = Renewals(monkeypatch, [DAY, DAY / 2])
    with pytest.raises(asyncio.CancelledError):
        await renewals.certificate.run()
    assert renewals.pauses == [DAY * 2 / 3, DAY / 3]


async def test_expired_certificate_is_not_renewed_in_a_busy_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    renewals = Renewals(monkeypatch, [-5.0])
    with pytest.raises(asyncio.CancelledError):
        await renewals.certificate.run()
    assert renewals.pauses == [certificate.RETRY_SECONDS[0]]


async def test_pause_after_failures_doubles_and_starts_again_after_a_success(monkeypatch: pytest.MonkeyPatch) -> None:
    first, longest = certificate.RETRY_SECONDS
    renewals = Renewals(monkeypatch, [None, None, DAY, None])
    with pytest.raises(asyncio.CancelledError):
        await renewals.certificate.run()
    assert renewals.pauses == [first, min(first * 2, longest), DAY * 2 / 3, first]

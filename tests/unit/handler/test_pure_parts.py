"""The handler's small pure parts: names of images, DNS settings, NAT rules, router advertisements, the heartbeat."""

import asyncio
import hashlib
import ipaddress
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.errors import ImagePullFailed, NetworkError
from handler import containerd, heartbeat, kvm
from handler.deviceplugin import openable
from handler.network import advertiser, nft, resolver


@pytest.mark.parametrize("reference", ["a", " a:1 ", "localhost:5000/a/b:v1", "r.test/a@sha256:" + "0" * 64])
def test_image_references(reference):
    assert containerd.checked(reference) == reference.strip()


@pytest.mark.parametrize("reference", ["", " ", "a b", "$(reboot)", "a\nb", "-x", "a" * 600, "../etc"])
def test_what_is_no_image_reference(reference):
    with pytest.raises(ImagePullFailed, match="not an image reference"):
        containerd.checked(reference)


@pytest.mark.parametrize(
    ("image", "policy", "expected"),
    [("a:1", None, "IfNotPresent"), ("a", None, "Always"), ("a:latest", None, "Always"), ("a", "Never", "Never"),
     ("a@sha256:" + "0" * 64, None, "IfNotPresent"), ("sha256:" + "a" * 64, None, "IfNotPresent"),
     ("r.test:5000/a", None, "Always"), ("r.test:5000/a:2", None, "IfNotPresent")],
)  # fmt: skip
def test_pull_policy(image, policy, expected):
    assert containerd.pull_policy(image, policy) == expected


def test_chain_id():
    first, second = "sha256:" + "1" * 64, "sha256:" + "2" * 64
    assert containerd.chain_id([first]) == first
    expected = hashlib.sha256(f"{first} {second}".encode()).hexdigest()
    assert containerd.chain_id([first, second]) == f"sha256:{expected}"


def test_resolver():
    found = resolver.parse(
        "# comment\nnameserver 10.96.0.10\nnameserver 127.0.0.53\nnameserver ::1\nnameserver fd00::53\n"
        "nameserver fe80::1%eth0\nnameserver 169.254.20.10\nnameserver 10.96.0.10\nnameserver $(x)\n"
        "search a.svc.cluster.local svc.cluster.local -bad- a..b x;y\noptions ndots:5\n"
    )
    assert [str(server) for server in found.servers4] == ["10.96.0.10", "169.254.20.10"]
    assert [str(server) for server in found.servers6] == ["fd00::53"]
    assert found.search == ("a.svc.cluster.local", "svc.cluster.local")


@given(st.text(max_size=2000))
def test_any_resolver_is_bounded(text):
    found = resolver.parse(text)
    assert len(found.servers4) + len(found.servers6) <= 8 and len(found.search) <= 32


def test_many_servers_and_domains_are_bounded():
    text = (
        "".join(f"nameserver 10.0.0.{n}\n" for n in range(1, 200)) + "search " + " ".join(f"d{n}" for n in range(999))
    )
    found = resolver.parse(text)
    assert (len(found.servers4), len(found.search)) == (8, 32)


FAMILY = nft.Family(
    ipaddress.ip_address("10.0.2.2"), ipaddress.ip_address("10.0.2.1"), ipaddress.IPv4Network("10.0.2.0/24"),
    (ipaddress.ip_address("10.1.1.5"),),
)  # fmt: skip


def rules(*ports: nft.Forwarded) -> nft.Ruleset:
    return nft.Ruleset("eth0", "k6t-eth0", (FAMILY,), ports)


def test_rules_forward_everything():
    text = rules().text()
    assert 'iifname "eth0" ip daddr { 10.1.1.5 } dnat ip to 10.0.2.2' in text
    assert 'oifname "eth0" ip saddr 10.0.2.0/24 masquerade' in text
    assert 'oifname "k6t-eth0" ip saddr { 127.0.0.1, 10.1.1.5 } snat ip to 10.0.2.1' in text
    assert 'iifname "k6t-eth0" ip daddr 127.0.0.0/8 drop' in text


def test_rules_forward_only_what_is_listed():
    text = rules(nft.Forwarded("tcp", 80, 80), nft.Forwarded("tcp", 8000, 8010), nft.Forwarded("udp", 53, 53)).text()
    assert "tcp dport { 80, 8000-8010 } dnat ip to 10.0.2.2" in text and "udp dport { 53 } dnat" in text
    assert "{ 10.1.1.5 } dnat" not in text


def test_marker_tells_rules_apart():
    assert rules().marker != rules(nft.Forwarded("tcp", 80, 80)).marker
    assert rules().marker == rules().marker and rules().marker in rules().text()


@pytest.mark.parametrize("bad", [("sctp", 1, 1), ("tcp; drop", 1, 1), ("tcp", 0, 1), ("udp", 9, 8), ("tcp", 1, 65536)])
def test_what_is_no_port_never_reaches_nft(bad):
    with pytest.raises(NetworkError, match="cannot forward"):
        nft.Forwarded(*bad)


def test_router_advertisement():
    message = advertiser.advertisement(ipaddress.IPv6Interface("fd10:0:2::1/120"), "02:00:00:00:00:01", 1400)
    assert message[:2] == b"\x86\x00" and message[5] == 0xC0 and message[6:8] == b"\xff\xff"
    assert message[16:24] == b"\x01\x01\x02\x00\x00\x00\x00\x01"
    assert message[24:32] == b"\x05\x01\x00\x00\x00\x00\x05\x78"
    assert message[32:36] == b"\x03\x04\x78\x80" and message[48:] == ipaddress.ip_address("fd10:0:2::").packed


def test_heartbeat():
    state = heartbeat.State(True, kvm.Verdict(False, "/dev/kvm is missing"))
    patch = heartbeat.patch(state, datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC))
    assert patch == {
        "metadata": {
            "labels": {"kubevirt.io/schedulable": "true", "hyperlet/kvm": "false"},
            "annotations": {
                "kubevirt.io/heartbeat": "2026-01-02T03:04:05Z",
                "hyperlet/kvm": "/dev/kvm is missing",
            },
        }
    }


async def test_the_heart_does_not_beat_before_the_devices_are_checked():
    """A handler that starts again must not say that its node takes no VMs, or that it has no KVM."""
    written, beaten, states = [], asyncio.Event(), [None, None, heartbeat.State(True, kvm.Verdict(True, "quick"))]

    class Nodes:
        async def patch(self, _kind, _namespace, name, patch):
            written.append((name, patch["metadata"]["labels"]))
            beaten.set()

    def state():
        return states.pop(0) if len(states) > 1 else states[0]

    task = asyncio.create_task(heartbeat.Heartbeat(Nodes(), "node1", state).run())
    try:
        await asyncio.wait_for(beaten.wait(), 10)
    finally:
        task.cancel()
    assert written == [("node1", {"kubevirt.io/schedulable": "true", "hyperlet/kvm": "true"})]


def test_kvm_program_and_structures():
    import ctypes

    assert ctypes.sizeof(kvm._Sregs) == 312  # KVM_GET_SREGS is _IOR(KVMIO, 0x83, struct kvm_sregs): 0x138 bytes
    assert kvm._PROGRAM.startswith(b"\xb9") and kvm._PROGRAM.endswith(b"\xf4")


async def test_device_that_is_not_there(tmp_path):
    verdict = await openable(str(tmp_path / "none"))
    assert not verdict.works and "No such file" in verdict.sentence

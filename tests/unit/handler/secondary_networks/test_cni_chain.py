"""ADD and DEL of a plugin chain: order, results, environment, failures."""

import json
import os
from typing import Any

import pytest

from api.errors import NetworkError
from api.network_attachments import Selection
from handler.secondary_networks import cni_chain
from handler.secondary_networks.cni_chain import PodSandbox
from handler.secondary_networks.cni_config import CniNetwork
from handler.secondary_networks.cni_exec import CniHost, PluginMissing
from kit.child import ChildResult

LAN = CniNetwork("network web/dmz", "lan", "0.4.0", ({"type": "first"}, {"type": "second"}))
WANTED = Selection(namespace="web", name="dmz", interface="net1", mac="02:00:00:00:00:01")
HOME = PodSandbox("web", "app", "1234-5678", 7)
REFUSAL = b'{"code": 7, "msg": "vlan: the bridge does not filter\\nVLANs", "details": "br1"}'


class Plugins(CniHost):
    """Returns configured results by command and plugin, and records the calls."""

    def __init__(self, **answers: Any) -> None:
        super().__init__()
        object.__setattr__(self, "answers", answers)
        object.__setattr__(self, "calls", [])

    async def run(self, plugin: str, environment: dict[str, str], stdin: bytes, seconds: float = 0) -> ChildResult:
        self.calls.append((environment["CNI_COMMAND"], plugin, environment, json.loads(stdin)))
        answer = self.answers.get(f"{environment['CNI_COMMAND']}_{plugin}", b'{"ips": []}')
        if isinstance(answer, Exception):
            raise answer
        return answer if isinstance(answer, ChildResult) else ChildResult(0, answer, b"")


async def test_add_runs_plugins_in_order_with_previous_result() -> None:
    host = Plugins(ADD_first=b'{"one": 1}', ADD_second=b'{"two": 2}')
    assert await cni_chain.add(host, LAN, WANTED, HOME) == {"two": 2}
    assert [(command, plugin) for command, plugin, _, _ in host.calls] == [("ADD", "first"), ("ADD", "second")]
    assert host.calls[1][3]["prevResult"] == {"one": 1}


async def test_environment_follows_the_cni_specification() -> None:
    host = Plugins()
    await cni_chain.add(host, LAN, WANTED, HOME)
    environment = host.calls[0][2]
    assert environment == {
        "CNI_COMMAND": "ADD",
        "CNI_CONTAINERID": "1234-5678",
        "CNI_NETNS": f"/proc/{os.getpid()}/fd/7",
        "CNI_IFNAME": "net1",
        "CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAMESPACE=web;K8S_POD_NAME=app;K8S_POD_INFRA_CONTAINER_ID=1234-5678;"
        "K8S_POD_UID=1234-5678;MAC=02:00:00:00:00:01",
    }


async def test_failed_add_stops_the_chain() -> None:
    host = Plugins(ADD_first=ChildResult(1, REFUSAL, b""))
    with pytest.raises(NetworkError) as caught:
        await cni_chain.add(host, LAN, WANTED, HOME)
    assert caught.value.message == (
        "network web/dmz: plugin first failed: vlan: the bridge does not filter VLANs (br1) (CNI error 7)"
    )
    assert len(host.calls) == 1


async def test_del_runs_all_plugins_in_reverse_despite_errors() -> None:
    host = Plugins(DEL_second=ChildResult(1, REFUSAL, b""), DEL_first=b"")
    with pytest.raises(NetworkError, match="plugin second failed: vlan"):
        await cni_chain.delete(host, LAN, WANTED, PodSandbox("web", "app", "1234-5678"), {"two": 2})
    assert [(command, plugin) for command, plugin, _, _ in host.calls] == [("DEL", "second"), ("DEL", "first")]
    assert [call[3]["prevResult"] for call in host.calls] == [{"two": 2}] * 2
    assert host.calls[0][2]["CNI_NETNS"] == ""


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (PluginMissing("first"), "is not on this node: no executable of that name in /opt/cni/bin or /usr/lib/cni"),
        (OSError(8, "Exec format error"), "cannot be run: Exec format error"),
        (ChildResult(2, b"", b"panic:\x1b[2J oh"), "failed with exit code 2: panic: [2J oh"),
        (ChildResult(1, b"", b""), "failed with exit code 1: no output"),
        (ChildResult(1, b"[]", b"no"), "failed with exit code 1: no"),
        (ChildResult(1, b'{"msg": "' + b"x" * 5000 + b'"}', b""), "failed: xxx"),
        (ChildResult(1, b'{"code": "7", "msg": "odd"}', b""), "failed: odd"),
        (ChildResult(-9, b"", b"", "did not exit within 100 s and was killed"), "did not exit within 100 s"),
        (ChildResult(0, b"not json", b""), "did not print JSON"),
        (ChildResult(0, b"", b""), "printed no result"),
        (ChildResult(0, b"[" * 5000, b""), "did not print JSON"),
        (ChildResult(0, b'"text"', b""), "printed no result"),
    ],
)
async def test_every_failure_names_network_and_plugin(answer: Any, words: str) -> None:
    with pytest.raises(NetworkError, match=r"^network web/dmz: plugin first ") as caught:
        await cni_chain.add(Plugins(ADD_first=answer), LAN, WANTED, HOME)
    assert words in caught.value.message
    assert len(caught.value.message) < 800 and caught.value.message.isprintable()

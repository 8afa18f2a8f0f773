from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.guest import agent
from protos import launcher_pb2 as pb
from protos import limits

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


def test_interfaces_are_converted() -> None:
    answer = [
        {"name": "lo", "ip-addresses": [{"ip-address": "127.0.0.1", "prefix": 8, "ip-address-type": "ipv4"}]},
        {
            "name": "eth0",
            "hardware-address": "02:00:00:00:00:01",
            "ip-addresses": [{"ip-address": "10.0.2.2", "prefix": 24}, {"ip-address": "fd10:0:2::2", "prefix": 120}],
        },
    ]
    lo, eth0 = agent.interfaces(answer)
    assert (lo.name, lo.mac, list(lo.addresses)) == ("lo", "", ["127.0.0.1/8"])
    assert (eth0.mac, list(eth0.addresses)) == ("02:00:00:00:00:01", ["10.0.2.2/24", "fd10:0:2::2/120"])


def test_excess_agent_data_is_truncated() -> None:
    address = {"ip-address": "10.0.0.1", "prefix": 24}
    found = agent.interfaces([{"name": "x" * 10_000, "ip-addresses": [address] * 1000}] * 5000)
    assert len(found) == limits.INTERFACES
    assert len(found[0].addresses) == limits.ADDRESSES
    assert len(found[0].name) == limits.STRING_BYTES
    assert len(agent.text("ä" * 1000).encode()) <= limits.STRING_BYTES


@pytest.mark.parametrize("ip", ["2001:db8::" + "1" * 300, "x" * 64, "10.0.0.1"])
def test_maximum_agent_data_fits_into_a_report(ip: str) -> None:
    long = "x" * 10_000
    address = {"ip-address": ip, "prefix": 128}
    item = {"name": long, "hardware-address": long, "ip-addresses": [address] * 1000}
    report = pb.Report(message="m" * 1024)
    report.guest.interfaces.extend(agent.interfaces([item] * 5000))
    fields = ("id", "name", "version", "version-id", "pretty-name", "kernel-release", "kernel-version", "machine")
    report.guest.os.CopyFrom(agent.os_info(dict.fromkeys(fields, long)))
    assert report.ByteSize() < limits.MESSAGE_BYTES * 9 // 10  # the disks' names are ours


def test_control_characters_and_lone_surrogates() -> None:
    assert agent.text("a\x1b[31m\nb\ud800") == "a?[31m?b"


def test_os_and_time_zone() -> None:
    info = agent.os_info({"id": "debian", "pretty-name": "Debian GNU/Linux 13", "kernel-release": "6.12", "more": 1})
    assert (info.id, info.pretty_name, info.kernel_release, info.name) == ("debian", "Debian GNU/Linux 13", "6.12", "")
    assert agent.timezone({"zone": "UTC", "offset": 0}) == "UTC, 0"
    assert agent.timezone({"zone": "UTC", "offset": 10**9}) == agent.timezone({"offset": "0"}) == ""


@given(JSON)
def test_arbitrary_agent_responses_are_accepted(answer: Any) -> None:
    agent.interfaces(answer)
    agent.interfaces([answer])
    agent.interfaces([{"name": answer, "ip-addresses": answer}, {"ip-addresses": [answer, {"ip-address": answer}]}])
    agent.os_info(answer)
    agent.os_info({"id": answer})
    agent.timezone({"zone": answer, "offset": answer})

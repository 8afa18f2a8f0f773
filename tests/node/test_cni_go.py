"""Our plugins and Debian's containernetworking-plugins on the same inputs: the same results and the same networks."""

import json
import re
from typing import Any

import pytest

from tests.node.cnilab import PLUGINS, Lab, Space, bridge_conf, client, host_local, lab, tuning_conf

pytestmark = pytest.mark.node
__all__ = ["client", "lab"]  # fixtures


def neutral(value: Any, where: Space) -> Any:
    """Without what differs from run to run: MACs that were not asked for, names on the host, paths of namespaces."""
    text = json.dumps(value).replace(where.path, "NETNS")
    text = re.sub(r'"(veth[0-9a-f]{8}|cnv[0-9a-f]{12})"', '"PORT"', text)
    return json.loads(re.sub(r'"mac": "(?!02:00:00:00)[0-9a-f:]{17}"', '"mac": "ANY"', text))


def shown(where: Space) -> list[str]:
    """Addresses and routes inside, the container's own words left out that depend on time or chance."""
    commands = "ip -o addr show scope global; ip route; ip -6 route show default; ip link show eth0"
    text = where.run(commands)
    text = re.sub(
        r"@if\d+|link/ether \S+|link-netns\S* \S+|qlen \d+|\bnodad\b|proto static|valid_lft.*|^\d+:",
        "",
        text,
        flags=re.M,
    )
    return [" ".join(line.split()) for line in text.splitlines()]


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "macspoofchk": {"macspoofchk": True},
    "mac": {"runtimeConfig": {"mac": "02:00:00:00:00:07"}, "args": {"cni": {"mac": "02:00:00:00:00:06"}}},
    "hairpin": {"hairpinMode": True},
    "promisc": {"promiscMode": True},
    "mtu": {"mtu": 1400},
    "dual stack": {"ipam": ["10.9.0.0/24", "fd99::/64"]},
    "gateway": {"isGateway": True, "ipam": ["10.9.0.0/24"]},
    "default gateway": {"isDefaultGateway": True, "ipam": ["10.9.0.0/24", "fd99::/64"]},
    "dns": {"ipam": ["10.9.0.0/24"], "dns": {"nameservers": ["10.9.0.53"], "search": ["x.test"]}},
    "empty ipam": {"ipam": {}},
}


@pytest.mark.parametrize("version", ["0.3.1", "0.4.0", "1.0.0"])
@pytest.mark.parametrize("name", CASES)
def test_bridge_matches_go_plugin_result_and_network(lab: Lab, name: str, version: str) -> None:
    fields = dict(CASES[name])
    subnets = fields.pop("ipam", None)
    outcomes = []
    for plugin in ("cnv-bridge", f"{PLUGINS}/bridge"):
        ours = plugin == "cnv-bridge"
        where = lab.container()
        conf = bridge_conf(cniVersion=version, bridge="br1" if ours else "br2", **fields)
        if subnets is not None:
            place = {"dataDir": str(lab.data / ("a" if ours else "b"))}
            conf["ipam"] = host_local(lab, *subnets, **place) if subnets else {}
        result = lab.call(plugin, "ADD", conf, where)
        text = json.dumps(neutral(result, where)).replace("br2", "br1")
        outcomes.append((json.loads(text), shown(where)))
        lab.call(plugin, "DEL", conf, where)
        lab.node.run(f"ip link del {conf['bridge']}")
    assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize(
    "fields",
    [
        {"mtu": 1400},
        {"mac": "02:00:00:00:00:07"},
        {"promisc": True, "allmulti": True},
        {"mac": "02:00:00:00:00:07", "runtimeConfig": {"mac": "02:00:00:00:00:08"}},
        {"runtimeConfig": {"mac": "02:00:00:00:00:08"}, "args": {"cni": {"mac": "02:00:00:00:00:09"}}},
        {"mtu": 1400, "args": {"cni": {"mtu": 1300, "promisc": True}}, "allowedArgs": ["mtu", "promisc"]},
        {"sysctl": {"net.ipv4.conf.IFNAME.arp_filter": "1", "net/ipv4/conf/IFNAME/proxy_arp": "1"}},
    ],
)
def test_tuning_matches_go_plugin_result_and_network(lab: Lab, fields: dict[str, Any]) -> None:
    outcomes = []
    sysctls = "cat /proc/sys/net/ipv4/conf/eth0/arp_filter /proc/sys/net/ipv4/conf/eth0/proxy_arp"
    for plugin in ("cnv-tuning", f"{PLUGINS}/tuning"):
        where = lab.container()
        lab.call("cnv-bridge", "ADD", bridge_conf(), where)
        conf = tuning_conf(lab, where, **fields, dataDir=str(lab.data / plugin.strip("/").replace("/", "-")))
        result = lab.call(plugin, "ADD", conf, where)
        changed = shown(where), where.run(sysctls)
        lab.call(plugin, "DEL", conf, where)
        # The older plugin does not give sysctls back.
        outcomes.append((neutral(result, where), changed, shown(where)))
        lab.call("cnv-bridge", "DEL", bridge_conf(), where)
    assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize("plugin", ["cnv-bridge", f"{PLUGINS}/bridge"])
def test_hairpin_with_promisc_is_refused_by_both(lab: Lab, plugin: str) -> None:
    assert lab.raw(
        plugin, "ADD", json.dumps(bridge_conf(hairpinMode=True, promiscMode=True)).encode(), lab.container()
    ).returncode

"""Faults of CNI calls: the error returned, and that nothing is left behind."""

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from cni import plugins, wire
from cni.host import HostResources, host_name
from kit.netlink import transport
from tests.node import cnilab
from tests.node.cnilab import Lab, Space, bridge_conf, client, host_local, lab, tuning_conf
from tests.waiting import wait_for

pytestmark = pytest.mark.node
__all__ = ["client", "lab"]  # fixtures
OUTSIDE = host_name("net", "c1", "eth0")


@pytest.mark.parametrize(
    ("stdin", "code", "words"),
    [
        (b"", 6, "not JSON"),
        (b"{", 6, "not JSON"),
        (b"\xff\xfe", 6, "not JSON"),
        (b'{"x":' + b"[" * 100000, 6, "not JSON"),
        (b"[]", 7, "Expected `object`"),
        (b"{}", 1, "no cniVersion"),
        ({"cniVersion": "0.2.0"}, 1, "0.2.0"),
        ({"cniVersion": "9.9.9"}, 1, "9.9.9"),
        ({"name": None}, 7, "$.name"),
        ({"name": "../x"}, 7, "$.name"),
        ({"bridge": "a/b"}, 7, "$.bridge"),
        ({"bridge": "x" * 16}, 7, "$.bridge"),
        ({"bridge": "lo"}, 7, "not a bridge"),
        ({"bridge": 7}, 7, "$.bridge"),
        ({"mtu": 10}, 7, "$.mtu"),
        ({"mtu": 65536}, 7, "$.mtu"),
        ({"mtu": "1500"}, 7, "$.mtu"),
        ({"vlan": 4095}, 7, "$.vlan"),
        ({"vlan": -1}, 7, "$.vlan"),
        ({"vlanTrunk": [{}]}, 7, "$.vlanTrunk[0]"),
        ({"vlanTrunk": [{"id": 1}, {"minID": 3}]}, 7, "$.vlanTrunk[1]"),
        ({"vlanTrunk": [{"minID": 9, "maxID": 3}]}, 7, "$.vlanTrunk[0]"),
        ({"vlanTrunk": [{"id": 0}]}, 7, "$.vlanTrunk[0].id"),
        ({"hairpinMode": True, "promiscMode": True}, 7, "exclude"),
        ({"ipMasqBackend": "pf"}, 7, "$.ipMasqBackend"),
        ({"disableContainerInterface": True, "ipam": {"type": "static"}}, 7, "$.disableContainerInterface"),
        ({"macspoofchk": "yes"}, 7, "$.macspoofchk"),
        ({"runtimeConfig": {"mac": "nonsense"}}, 7, "$.runtimeConfig.mac"),
        ({"args": {"cni": {"mac": "01:00:5e:00:00:01"}}}, 7, "$.args.cni.mac"),
        ({"ipam": {"type": "../../bin/sh"}}, 7, "$.ipam.type"),
        ({"ipam": {"type": "no-such-plugin"}}, 102, "in none of the directories"),
        ({"ipam": {"type": "host-local"}}, 999, "host-local"),
        ({"prevResult": {"ips": [{"address": "nonsense"}]}}, 7, "$.prevResult"),
    ],
)
def test_invalid_config_returns_code_and_leaves_nothing(lab: Lab, stdin: Any, code: int, words: str) -> None:
    where = lab.container()
    conf = stdin if isinstance(stdin, bytes) else json.dumps(bridge_conf(**stdin)).encode()
    error = lab.refusal("cnv-bridge", "ADD", conf, where)
    assert code in (error["code"], 999) and words in error["msg"], error
    lab.clean()
    assert set(where.links()) == {"lo"}
    if code == 7 and not isinstance(stdin, bytes):  # the runtime will say DEL with the same
        assert lab.raw("cnv-bridge", "DEL", conf, where).returncode == 0


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({"CNI_COMMAND": "PLAY"}, 4, "PLAY"),
        ({"CNI_CONTAINERID": None}, 4, "CNI_CONTAINERID"),
        ({"CNI_NETNS": None}, 4, "CNI_NETNS"),
        ({"CNI_IFNAME": None}, 4, "CNI_IFNAME"),
        ({"CNI_PATH": None}, 4, "CNI_PATH"),
        ({"CNI_CONTAINERID": "../../etc/x"}, 4, "CNI_CONTAINERID"),
        ({"CNI_CONTAINERID": "-x"}, 4, "CNI_CONTAINERID"),
        ({"CNI_CONTAINERID": "x" * 201}, 4, "CNI_CONTAINERID"),
        ({"CNI_IFNAME": "../x"}, 4, "CNI_IFNAME"),
        ({"CNI_IFNAME": "x" * 16}, 4, "CNI_IFNAME"),
        ({"CNI_IFNAME": "a b"}, 4, "CNI_IFNAME"),
        ({"CNI_IFNAME": ".."}, 4, "CNI_IFNAME"),
        ({"CNI_IFNAME": "lo"}, 100, "already has lo"),
        ({"CNI_ARGS": "nonsense"}, 4, "CNI_ARGS"),
        ({"CNI_ARGS": "MAC=nonsense"}, 7, "CNI_ARGS: MAC"),
        ({"CNI_NETNS": "/run/netns/no-such"}, 8, "cannot be opened"),
        ({"CNI_NETNS": "/etc/passwd"}, 8, "not a network namespace"),
        ({"CNI_NETNS": "/proc/self/ns/mnt"}, 8, "not a network namespace"),
        ({"CNI_NETNS": "/proc/self/ns/net"}, 8, "the host's own"),
    ],
)
def test_invalid_environment_returns_code_and_leaves_nothing(
    lab: Lab, changes: dict[str, str | None], code: int, words: str
) -> None:
    where = lab.container()
    error = lab.refusal("cnv-bridge", "ADD", bridge_conf(), where, **changes)
    assert error["code"] == code and words in error["msg"], error
    lab.clean()
    assert set(where.links()) == {"lo"}


def test_verbs_newer_than_cni_version_are_refused(lab: Lab) -> None:
    where = lab.container()
    old = bridge_conf(cniVersion="0.3.1")
    assert lab.refusal("cnv-bridge", "CHECK", old, where)["code"] == 1
    for verb in ("GC", "STATUS"):
        assert lab.refusal("cnv-bridge", verb, bridge_conf(cniVersion="1.0.0"), None)["code"] == 1
    assert lab.refusal("cnv-bridge", "CHECK", bridge_conf(), where)["code"] == 7  # no prevResult


def test_del_succeeds_if_resources_are_missing(lab: Lab) -> None:
    bridge, ipam = bridge_conf(macspoofchk=True), host_local(lab, "10.9.0.0/24")
    never = lab.container()
    lab.call("cnv-bridge", "DEL", bridge, never)
    lab.call("cnv-tuning", "DEL", tuning_conf(lab, never, mtu=1400), never)
    for how in ("twice", "no netns", "netns gone", "interface gone"):
        where = Space()
        lab.call("cnv-bridge", "ADD", bridge | {"ipam": ipam}, where)
        tuning = tuning_conf(lab, where, mtu=1400)
        lab.call("cnv-tuning", "ADD", tuning, where)
        changes: dict[str, str | None] = {}
        if how == "no netns":
            changes = {"CNI_NETNS": None}
        elif how == "interface gone":
            where.run("ip link del eth0")
        elif how == "netns gone":
            changes = {"CNI_NETNS": "/run/netns/gone"}
            where.close()
        for _ in range(2):
            lab.call("cnv-tuning", "DEL", tuning, None if changes else where, **changes)
            lab.call("cnv-bridge", "DEL", bridge | {"ipam": ipam}, None if changes else where, **changes)
        lab.clean(but={"br1"})
        assert not cnilab.reserved(lab) and not list(lab.data.glob("tuning/*"))
        if how != "netns gone":
            where.close()


class FaultInjector:
    """Makes the n-th netlink message fail, and no later one."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.count, self.fatal = 0, 0
        self._lock = threading.Lock()
        for name in ("talk", "batch"):
            patch.setattr(transport.NetlinkSocket, name, self._wrapped(getattr(transport.NetlinkSocket, name)))

    def _wrapped(self, real: Any) -> Any:
        def wrapper(this: transport.NetlinkSocket, *arguments: Any) -> Any:
            with self._lock:
                self.count += 1
                now = self.count == self.fatal
            if now:
                raise transport.NetlinkRefusal(5, "sabotage", 0)
            return real(this, *arguments)

        return wrapper


@pytest.mark.parametrize("plugin", ["cnv-bridge", "cnv-tuning"])
def test_add_failing_at_any_step_is_rolled_back(lab: Lab, monkeypatch: pytest.MonkeyPatch, plugin: str) -> None:
    where = lab.container()
    fields = {"macspoofchk": True, "hairpinMode": True, "portIsolation": True, "isDefaultGateway": True, "ipMasq": True}
    conf = bridge_conf(**fields, ipam=host_local(lab, "10.9.0.0/24", "fd99::/64"))
    if plugin == "cnv-tuning":
        lab.call("cnv-bridge", "ADD", bridge_conf(macspoofchk=True), where)
        sysctls = {"net.ipv4.conf.IFNAME.arp_filter": "1"}
        conf = tuning_conf(lab, where, mac="02:00:00:00:00:99", mtu=1400, promisc=True, txQLen=9, sysctl=sysctls)
    lab.stop()
    before, rules = where.links().get("eth0"), lab.ruleset()

    def body() -> int:
        resources = HostResources((str(lab.data),))
        try:
            return _fail_at_each_step(lab, resources, FaultInjector(monkeypatch), plugin, conf, where, (before, rules))
        finally:
            resources.close()

    assert lab.node.inside(body) >= (12 if plugin == "cnv-bridge" else 3)


def _fail_at_each_step(
    lab: Lab,
    resources: HostResources,
    injector: FaultInjector,
    plugin: str,
    conf: Any,
    where: Space,
    before: tuple[Any, str],
) -> int:
    for step in range(1, 100):
        request = wire.WireRequest(plugin, lab.environment("ADD", where), json.dumps(conf).encode(), where.fd)
        injector.count, injector.fatal = 0, step
        answer = plugins.serve(request, os.getpid(), resources, lambda: True)
        injector.fatal = 0
        if not answer.code:
            return step - 1
        assert b"sabotage" in answer.stdout, answer.stdout
        link = where.links().get("eth0")
        if plugin == "cnv-tuning":
            assert link == before[0] and lab.ruleset() == before[1], f"step {step}"
            assert where.run("cat /proc/sys/net/ipv4/conf/eth0/arp_filter").strip() == "0"
            assert not list(lab.data.glob("tuning/*"))
        else:
            assert link is None, f"step {step}"
            lab.clean()
            assert not cnilab.reserved(lab), f"step {step}"
    raise AssertionError("it never worked")


def slow_ipam(folder: Path) -> Path:
    """An IPAM plugin that says that it runs, and then waits for a file."""
    program = folder / "slow"
    program.write_text(
        "#!/bin/sh\n[ $CNI_COMMAND = ADD ] || { echo $CNI_COMMAND >> $0.log; exit 0; }\n"
        "touch $0.running; while [ ! -e $0.go ]; do sleep 0.05; done\n"
        'echo \'{"cniVersion":"1.0.0","ips":[{"address":"10.9.0.5/24"}]}\'\n'
    )
    program.chmod(0o755)
    return program


def begin(lab: Lab, command: str, conf: dict[str, Any], where: Space, **changes: str | None) -> subprocess.Popen[bytes]:
    """Starts a call and does not wait for it."""
    path = {"CNI_PATH": f"{lab.folder}:{cnilab.PLUGINS}", "PATH": "/usr/bin:/bin"}
    environment = lab.environment(command, where, **changes) | path
    program = ["nsenter", f"--net={lab.node.path}", str(lab.folder / "cnv-bridge")]
    given = lab.folder / f"in-{time.monotonic_ns()}"
    given.write_text(json.dumps(conf))
    with given.open() as stdin:
        return subprocess.Popen(program, stdin=stdin, stdout=subprocess.PIPE, env=environment)


def test_killed_add_followed_by_del_leaves_nothing(lab: Lab) -> None:
    where, program = lab.container(), slow_ipam(lab.folder)
    conf = bridge_conf(macspoofchk=True, ipam={"type": "slow"})
    adding = begin(lab, "ADD", conf, where)
    wait_for((lab.folder / "slow.running").exists, "the slow plugin runs", seconds=20)
    adding.kill()
    adding.communicate()
    deleting = begin(lab, "DEL", conf, where)  # waits for its turn
    program.with_suffix(".go").touch()
    assert deleting.wait(20) == 0
    deleting.communicate()
    lab.clean(but={"br1"})
    assert set(where.links()) == {"lo"} and "DEL" in (lab.folder / "slow.log").read_text()


def test_daemon_killed_during_add_leaves_nothing_after_del(lab: Lab) -> None:
    where = lab.container()
    slow_ipam(lab.folder)
    conf = bridge_conf(macspoofchk=True, ipam={"type": "slow"})
    adding = begin(lab, "ADD", conf, where)
    wait_for((lab.folder / "slow.running").exists, "the slow plugin runs", seconds=20)
    assert lab.daemon
    lab.daemon.send_signal(signal.SIGKILL)
    lab.daemon.wait()
    assert json.loads(adding.communicate(timeout=10)[0])["code"] == 11
    (lab.folder / "slow.go").touch()
    assert OUTSIDE in lab.node.links()
    lab.start()
    deleting = begin(lab, "DEL", conf, where)
    assert deleting.wait(20) == 0
    deleting.communicate()
    lab.clean(but={"br1"})


def test_stuck_calls_do_not_block_others(lab: Lab) -> None:
    slow_ipam(lab.folder)
    conf = bridge_conf(ipam={"type": "slow"})
    stuck = [begin(lab, "ADD", conf, lab.container(), CNI_CONTAINERID=f"s{n}") for n in range(8)]
    wait_for((lab.folder / "slow.running").exists, "the slow plugin runs", seconds=20)
    for number in range(3):
        lab.call("cnv-bridge", "ADD", bridge_conf(), lab.container(), CNI_CONTAINERID=f"c{number}")
    assert all(each.poll() is None for each in stuck)
    (lab.folder / "slow.go").touch()
    assert [json.loads(each.communicate(timeout=30)[0])["ips"][0]["address"] for each in stuck] == ["10.9.0.5/24"] * 8


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("exit 3", "exit code 3"),
        ("echo nonsense", "did not print JSON"),
        ("echo '{}'", "no address"),
        ('echo \'{"ips":[{"address":"x"}]}\'', "not a CNI result"),
        ("cat /dev/zero", "more than"),
        ('echo \'{"code":42,"msg":"my own words"}\'; exit 1', "my own words"),
    ],
)
def test_faulty_ipam_plugin_is_named_and_add_rolled_back(lab: Lab, script: str, words: str) -> None:
    program = lab.folder / "bad"
    program.write_text(
        f'#!/bin/sh\n[ $CNI_COMMAND = DEL ] && exit 0\n[ -z "$HYPERLET_CNI_SOCKET" ] || exit 9\n{script}\n'
    )
    program.chmod(0o755)
    where = lab.container()
    conf = bridge_conf(ipam={"type": "bad"})
    error = lab.refusal("cnv-bridge", "ADD", conf, where, CNI_PATH=str(lab.folder))
    assert words in error["msg"] and "bad" in error["msg"] and error["code"] == (42 if "own words" in words else 102)
    lab.clean()
    assert set(where.links()) == {"lo"}


@pytest.mark.parametrize("versions", ['["1.0.0","1.1.0"]', "nonsense"])
@pytest.mark.parametrize("verb", ["GC", "STATUS"])
def test_ipam_plugin_error_is_returned_if_verb_is_supported(lab: Lab, verb: str, versions: str) -> None:
    program = lab.folder / "sick"
    said = f'{{"cniVersion":"1.1.0","supportedVersions":{versions}}}'
    program.write_text(
        f"#!/bin/sh\n[ $CNI_COMMAND = VERSION ] && echo '{said}' && exit 0\n"
        'echo \'{"code":50,"msg":"no addresses left"}\'; exit 1\n'
    )
    program.chmod(0o755)
    conf = bridge_conf(cniVersion="1.1.0", ipam={"type": "sick"}) | {"cni.dev/valid-attachments": []}
    error = lab.refusal("cnv-bridge", verb, conf, None, CNI_PATH=str(lab.folder))
    assert (error["code"], error["msg"]) == (50, "IPAM plugin sick: no addresses left")


def test_call_without_daemon_returns_try_again_later(lab: Lab) -> None:
    where = lab.container()
    lab.call("cnv-bridge", "ADD", bridge_conf(macspoofchk=True), where)
    lab.stop()
    error = lab.refusal("cnv-bridge", "ADD", bridge_conf(), where)
    assert error["code"] == 11 and "try again later" in error["msg"]
    assert lab.raw("cnv-bridge", "VERSION", b"{}", None).returncode == 0
    lab.start()  # nothing was lost
    lab.call("cnv-bridge", "DEL", bridge_conf(macspoofchk=True), where)
    lab.clean(but={"br1"})


def test_calls_are_accepted_from_host_root_only(lab: Lab) -> None:
    assert Path(lab.socket).parent.stat().st_mode & 0o777 == 0o700
    client = lab.folder / "cnv-bridge"
    environment = lab.environment("STATUS", None) | {"PATH": "/usr/bin:/bin"}
    stdin = json.dumps(bridge_conf(cniVersion="1.1.0")).encode()
    inside = ["nsenter", f"--net={lab.node.path}"]
    # Also with input far beyond what the socket holds: the response arrives however slowly the caller writes.
    long = stdin[:-1] + b', "padding": "' + b"x" * 900_000 + b'"}'
    whose = (["unshare", "--pid", "--fork"], ["unshare", "--user", "--map-root-user"], ["unshare", "--net"])
    for who, data in itertools.product(whose, (stdin, long)):
        done = subprocess.run([*inside, *who, client], input=data, env=environment, capture_output=True, check=False)
        assert done.returncode == 1 and b"only root on the host" in done.stdout, (who, len(data), done.stdout)
    # Other users are refused even where the directory permits access.
    Path(lab.socket).parent.chmod(0o755)
    Path(lab.socket).chmod(0o777)
    lab.folder.chmod(0o755)
    user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    done = subprocess.run([*inside, *user, client], input=stdin, env=environment, capture_output=True, check=False)
    assert b"only root on the host" in done.stdout
    done = subprocess.run([*inside, client], input=stdin, env=environment, capture_output=True, check=False)
    assert done.returncode == 0


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        wire.REQUEST.pack(wire.MAGIC, 0xFFFFFFFF, 0),
        wire.REQUEST.pack(wire.MAGIC, 4, 0xFFFFFFFF),
        wire.REQUEST.pack(wire.MAGIC, 2, 0) + b"a\0surplus",
        wire.REQUEST.pack(wire.MAGIC, 6, 0) + b"x\0PATH",
    ],
)
def test_invalid_socket_data_closes_connection(lab: Lab, data: bytes) -> None:
    # By a program: the caller's namespaces are those of its main thread.
    script = (
        "import socket,sys; s=socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); s.settimeout(20);"
        "s.sendall(bytes.fromhex(sys.argv[2])); print(s.recv(100))"
    )
    command = ["nsenter", f"--net={lab.node.path}", sys.executable, "-c", script, lab.socket, data.hex()]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "b''" or "ConnectionResetError" in done.stderr
    lab.call("cnv-bridge", "ADD", bridge_conf(), lab.container())


def test_config_over_1_mib_is_refused(lab: Lab) -> None:
    error = lab.refusal("cnv-bridge", "ADD", b" " * ((1 << 20) + 1), lab.container())
    assert error["code"] == 5 and "1048576" in error["msg"]


def test_files_are_resolved_in_mount_namespace_of_caller(lab: Lab) -> None:
    """The daemon lives in a container: CNI_PATH, the plugins' own files and dataDir are the host's, not its own."""
    place = lab.folder / "there"
    place.mkdir()
    where = lab.container()
    lab.call("cnv-bridge", "ADD", bridge_conf(), where)
    script = (
        f"mount -t tmpfs none {place}; cp /usr/lib/cni/static {place}/mine; cd {place}; "
        f"CNI_IFNAME=eth1 {lab.folder}/cnv-bridge < {lab.folder}/one; echo; "
        f"mkdir {lab.data}/tuning; mount -t tmpfs none {lab.data}/tuning; "
        f"{lab.folder}/cnv-tuning < {lab.folder}/two; ls {lab.data}/tuning"
    )
    ipam = {"type": "mine", "addresses": [{"address": "10.9.0.7/24"}]}
    (lab.folder / "one").write_text(json.dumps(bridge_conf(ipam=ipam)))
    (lab.folder / "two").write_text(json.dumps(tuning_conf(lab, where, mtu=1400)))
    environment = lab.environment("ADD", where, CNI_PATH=str(place)) | {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
    command = ["nsenter", f"--net={lab.node.path}", "unshare", "--mount", "sh", "-ec", script]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "10.9.0.7/24" in done.stdout and done.stdout.endswith("c1_eth0.json\n")
    assert where.links()["eth0"].mtu == 1400 and not list((lab.data / "tuning").iterdir()) and not list(place.iterdir())

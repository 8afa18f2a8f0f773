"""examples/vm.yaml: kubectl output, guest, status, pod; and other ways to write a VM."""

from __future__ import annotations

import pytest

from tests.e2e.manifests import booting, cloud_init, halting, idle, virtual_machine
from tests.e2e.support import ROOT, E2eNamespace, Json, KubectlError, VmUnderTest, conditions, deployed_image, http
from tests.waiting import wait_for

OLD_VERSION = "kubevirt.io/v1alpha3"


@pytest.fixture(scope="module")
def hello(space: E2eNamespace) -> VmUnderTest:
    """The example, applied as in the README."""
    space.kubectl("apply", "-f", str(ROOT / "examples" / "vm.yaml"))
    return space.existing_vm("hello").until_status("Running")


@pytest.fixture(scope="module")
def report(hello: VmUnderTest) -> Json:
    """The report of the example's guest."""
    return hello.answer()


@pytest.fixture(scope="module")
def service_address(space: E2eNamespace, hello: VmUnderTest) -> str:
    """The ClusterIP of the example's Service."""
    found = space.kubectl.get("service", "hello")
    assert found
    return str(found["spec"]["clusterIP"])


def table(text: str) -> list[list[str]]:
    """The rows of a kubectl table, split into words."""
    return [line.split() for line in text.splitlines() if line.strip()]


# ---- what kubectl shows


def test_get_shows_kubevirt_columns(space: E2eNamespace, hello: VmUnderTest) -> None:
    machines, instances = space.kubectl("get", "vm,vmi").strip().split("\n\n")
    header, row = table(machines)
    assert header == ["NAME", "AGE", "STATUS", "READY"]
    assert row[0].endswith("/hello") and row[2:] == ["Running", "True"]
    header, row = table(instances)
    assert header == ["NAME", "AGE", "PHASE", "IP", "NODENAME", "READY"]
    assert row[2:] == ["Running", hello.pod()["status"]["podIP"], hello.node(), "True"]


def test_get_wide_shows_kubevirt_columns(space: E2eNamespace, hello: VmUnderTest) -> None:
    header, row = table(space.kubectl("get", "vmi", "hello", "-o", "wide"))
    assert header == ["NAME", "AGE", "PHASE", "IP", "NODENAME", "READY", "LIVEMIGRATABLE", "PAUSED"]
    assert row[6] == "False"  # migration is not supported yet


@pytest.mark.parametrize("word", ["vm", "vms", "virtualmachine", "vmi", "vmis", "virtualmachineinstances"])
def test_short_name_finds_object(space: E2eNamespace, hello: VmUnderTest, word: str) -> None:
    assert space.kubectl("get", word, "hello", "-o", "name").strip().endswith("/hello")


def test_get_all_shows_vms(space: E2eNamespace, hello: VmUnderTest) -> None:
    assert "virtualmachine.kubevirt.io/hello" in space.kubectl("get", "all", "-o", "name")


def test_describe_shows_events(space: E2eNamespace, hello: VmUnderTest) -> None:
    machine = space.kubectl("describe", "vm", "hello")
    assert "SuccessfulCreate" in machine.partition("Events:")[2], machine
    told = wait_for(
        lambda: next((e for e in hello.events() if e.startswith("Started:")), None), "an Event says that it started"
    )
    assert told.split(": ", 1)[1].strip(), "an Event without words"
    assert "Started" in space.kubectl("describe", "vmi", "hello").partition("Events:")[2]


def test_explain_describes_vm_fields(space: E2eNamespace, hello: VmUnderTest) -> None:
    domain = space.kubectl("explain", "vm.spec.template.spec.domain")
    description = domain.partition("DESCRIPTION:")[2].partition("FIELDS:")[0]
    assert len(description.split()) >= 3, domain
    for part in ("cpu", "memory", "devices", "firmware", "resources"):
        assert f" {part}\t" in domain, f"{part} is not explained\n{domain}"
    strategy = space.kubectl("explain", "vm.spec.runStrategy")
    assert "Halted" in strategy and "RerunOnFailure" in strategy, strategy


def test_pod_log_shows_serial_console(hello: VmUnderTest, report: Json) -> None:
    assert "hyperlet guest ready: hello" in hello.log()


# ---- guest


def test_service_reaches_guest_from_both_nodes(
    space: E2eNamespace, hello: VmUnderTest, report: Json, service_address: str
) -> None:
    for node in ("node1", "node2"):
        pod = space.python_pod(f"client-{node}", node)
        told = space.fetch_from(pod, f"http://{service_address}/")
        assert told["bootId"] == report["bootId"], f"from {node} (the machine is on {hello.node()})"


def test_service_reaches_guest_from_host(report: Json, service_address: str) -> None:
    assert report["bootId"] in http(f"http://{service_address}/")


def test_guest_has_hostname_and_cloud_init_data(report: Json) -> None:
    assert report["hostname"] == "hello"
    user_data = report["cloudInit"]["user-data"]
    assert user_data.startswith("#cloud-config") and "password: hyperlet" in user_data
    assert "instance-id" in report["cloudInit"]["meta-data"]


def test_guest_with_masquerade_has_internal_address(report: Json) -> None:
    addresses = [address for interface in report["interfaces"] for address in interface["addresses"]]
    assert "10.0.2.2/24" in addresses


def test_guest_has_dns_configuration_of_its_pod(space: E2eNamespace, hello: VmUnderTest, report: Json) -> None:
    pod = space.kubectl("exec", hello.pod()["metadata"]["name"], "-c", "compute", "--", "cat", "/etc/resolv.conf")
    lines = table(pod)
    assert report["dns"] == [words[1] for words in lines if words[0] == "nameserver"]
    assert report["search"] == next(words[1:] for words in lines if words[0] == "search")
    assert f"{space.name}.svc.cluster.local" in report["search"]


def test_guest_has_configured_memory_and_cpus(report: Json) -> None:
    assert 80 << 20 < report["memoryBytes"] <= 128 << 20
    assert report["cpus"] == 1


# ---- status


def test_vmi_status_has_phase_transition_timestamps(hello: VmUnderTest) -> None:
    vmi = hello.vmi()
    assert vmi
    stamps = vmi["status"]["phaseTransitionTimestamps"]
    assert [stamp["phase"] for stamp in stamps] == ["Pending", "Scheduling", "Scheduled", "Running"]
    times = [stamp["phaseTransitionTimestamp"] for stamp in stamps]
    assert times == sorted(times)


def test_software_emulation_is_reported_as_condition(hello: VmUnderTest) -> None:
    node = hello.kubectl.get("node", hello.node())
    assert node
    if int(node["status"]["allocatable"].get("devices.kubevirt.io/kvm", "0")):
        assert "SoftwareEmulation" not in conditions(hello.vmi())
    else:
        said = conditions(hello.vmi())["SoftwareEmulation"]
        assert said["status"] == "True" and said["message"]


def test_guest_agent_data_is_in_vmi_status(hello: VmUnderTest, report: Json) -> None:
    wait_for(
        lambda: conditions(hello.vmi()).get("AgentConnected", {}).get("status") == "True",
        "the guest agent is connected",
        explain=hello.diagnostics,
    )

    def told() -> Json | None:
        status: Json = (hello.vmi() or {})["status"]
        return (
            status
            if status.get("guestOSInfo") and "guest-agent" in status["interfaces"][0].get("infoSource", "")
            else None
        )

    status = wait_for(told, "the agent's knowledge is in the status", explain=hello.diagnostics)
    assert status["guestOSInfo"]["kernelRelease"] == report["kernel"]
    interface = status["interfaces"][0]
    inside = next(each for each in report["interfaces"] if each["mac"] == interface["mac"])
    assert interface["name"] == "default"
    assert interface["interfaceName"] == inside["name"]
    assert interface["ipAddress"] == hello.pod()["status"]["podIP"]


def test_vmi_status_has_node_pod_and_machine_data(hello: VmUnderTest) -> None:
    vmi, pod = hello.vmi(), hello.pod()
    assert vmi
    status = vmi["status"]
    assert vmi["metadata"]["labels"]["kubevirt.io/nodeName"] == status["nodeName"] == pod["spec"]["nodeName"]
    assert status["activePods"] == {pod["metadata"]["uid"]: pod["spec"]["nodeName"]}
    assert "q35" in status["machine"]["type"]
    assert status["qosClass"] == pod["status"]["qosClass"] == "Burstable"
    assert status["memory"]["guestAtBoot"] == "128Mi"
    assert status["currentCPUTopology"] == {"cores": 1, "sockets": 1, "threads": 1}
    assert status["launcherContainerImageVersion"] == deployed_image(hello.kubectl, "launcher")
    assert {volume["name"] for volume in status["volumeStatus"]} == {"root", "cloudinit"}
    assert conditions(vmi)["Ready"]["status"] == "True"


def test_vm_status_is_ready(hello: VmUnderTest) -> None:
    vm = hello.vm()
    assert vm
    assert vm["status"]["created"] is True and vm["status"]["ready"] is True
    assert conditions(vm)["Ready"]["status"] == "True"
    assert conditions(vm).get("Failure", {"status": "False"})["status"] == "False"


def test_restart_required_is_set_only_while_template_change_needs_restart(hello: VmUnderTest) -> None:
    assert "RestartRequired" not in conditions(hello.vm())
    hello.patch({"metadata": {"labels": {"e2e.test/only-a-label": "yes"}}})
    labels = {"labels": {"app": "hello", "e2e.test/later": "yes"}}
    hello.patch({"spec": {"template": {"metadata": labels}}})
    hello.patch({"spec": {"template": {"spec": {"terminationGracePeriodSeconds": 29}}}})
    wait_for(
        lambda: conditions(hello.vm()).get("RestartRequired", {}).get("status") == "True",
        "the machine says that the change needs a restart",
        explain=hello.diagnostics,
    )
    hello.patch({"spec": {"template": {"spec": {"terminationGracePeriodSeconds": 30}}}})
    wait_for(
        lambda: "RestartRequired" not in conditions(hello.vm()), "taken back, it needs none", explain=hello.diagnostics
    )


# ---- the installation


def test_kubevirt_object_is_deployed_and_available(space: E2eNamespace) -> None:
    found = space.kubectl.items("kubevirts", "--all-namespaces")
    assert [each["status"]["phase"] for each in found] == ["Deployed"]
    assert conditions(found[0])["Available"]["status"] == "True"
    assert conditions(found[0])["Degraded"]["status"] == "False", conditions(found[0])


def test_nodes_are_schedulable_with_heartbeat_and_devices(space: E2eNamespace) -> None:
    for node in space.kubectl.items("nodes"):
        assert node["metadata"]["labels"]["kubevirt.io/schedulable"] == "true"
        assert node["metadata"]["annotations"]["kubevirt.io/heartbeat"]
        assert node["metadata"]["labels"]["hyperlet/kvm"] in ("true", "false")
        assert "/dev/kvm" in node["metadata"]["annotations"]["hyperlet/kvm"], "and why"
        assert int(node["status"]["allocatable"]["devices.kubevirt.io/tun"].replace("k", "000")) == 1000


# ---- the pod


def test_launcher_pod_has_kubevirt_name_labels_and_owner(hello: VmUnderTest) -> None:
    vmi, pod = hello.vmi(), hello.pod()
    assert vmi
    labels = pod["metadata"]["labels"]
    assert pod["metadata"]["name"].startswith("virt-launcher-hello-")
    assert labels["app"] == "hello"
    assert labels["kubevirt.io"] == "virt-launcher"
    assert labels["kubevirt.io/created-by"] == vmi["metadata"]["uid"]
    assert labels["vm.kubevirt.io/name"] == labels["vmi.kubevirt.io/id"] == "hello"
    assert pod["metadata"]["annotations"]["kubevirt.io/domain"] == "hello"
    owner = pod["metadata"]["ownerReferences"][0]
    assert owner["controller"] is True and owner["uid"] == vmi["metadata"]["uid"]
    assert pod["spec"]["containers"][0]["name"] == "compute"
    assert pod["spec"]["restartPolicy"] == "Never"
    assert pod["spec"]["terminationGracePeriodSeconds"] == 30 + 30


def test_container_disk_adds_no_container(hello: VmUnderTest) -> None:
    spec = hello.pod()["spec"]
    assert len(spec["containers"]) + len(spec.get("initContainers", [])) == 1


def test_readiness_gate_of_running_vm_is_true(hello: VmUnderTest) -> None:
    gate = "kubevirt.io/virtual-machine-unpaused"
    pod = hello.pod()
    assert [each["conditionType"] for each in pod["spec"]["readinessGates"]] == [gate]
    assert conditions(pod)[gate]["status"] == "True"
    assert conditions(pod)["Ready"]["status"] == "True"


# ---- other ways to write a VM


@pytest.fixture(scope="module")
def v1alpha3_vm(space: E2eNamespace) -> VmUnderTest:
    """A VM of the old API version, with its own host name, subdomain and name servers."""
    manifest = booting(
        "elder",
        cloud_init("#cloud-config\nruncmd:\n- echo 'was here' > /dev/console\n"),
        run=True,
        hostname="methuselah",
        subdomain="elders",
        dnsPolicy="None",
        dnsConfig={"nameservers": ["192.0.2.53"], "searches": ["first.test", "second.test"]},
    )
    return space.apply_vm({**manifest, "apiVersion": OLD_VERSION})


def test_vm_is_readable_in_both_api_versions(space: E2eNamespace, v1alpha3_vm: VmUnderTest) -> None:
    for version in ("v1", "v1alpha3"):
        found = space.kubectl.get(f"virtualmachines.{version}.kubevirt.io", "elder")
        assert found and found["apiVersion"] == f"kubevirt.io/{version}"
        assert found["spec"]["template"]["spec"]["hostname"] == "methuselah"


def test_hostname_and_name_servers_reach_guest(v1alpha3_vm: VmUnderTest) -> None:
    told = v1alpha3_vm.until_status("Running").answer()
    assert told["hostname"] == "methuselah"
    assert told["dns"] == ["192.0.2.53"]
    assert told["search"][:2] == ["first.test", "second.test"]
    spec = v1alpha3_vm.pod()["spec"]
    assert (spec["hostname"], spec["subdomain"]) == ("methuselah", "elders")


def test_cloud_init_runcmd_is_executed(v1alpha3_vm: VmUnderTest) -> None:
    told = v1alpha3_vm.answer()
    assert [command["exit"] for command in told["cloudInit"]["applied"]["commands"]] == [0]
    assert "was here" in v1alpha3_vm.log()


def test_vm_with_paused_start_strategy_is_paused_and_not_ready(space: E2eNamespace) -> None:
    paused = space.apply_vm(idle("paused", startStrategy="Paused"))
    paused.until_status("Paused")
    wait_for(
        lambda: conditions(paused.vmi()).get("Paused", {}).get("status") == "True",
        "the VMI is Paused",
        explain=paused.diagnostics,
    )
    wait_for(
        lambda: conditions(paused.pod())["Ready"]["status"] == "False",
        "no Service sends it traffic",
        explain=paused.diagnostics,
    )
    paused.discard()


def test_only_listed_ports_are_forwarded(space: E2eNamespace) -> None:
    manifest = booting("walled")
    devices = manifest["spec"]["template"]["spec"]["domain"]["devices"]
    devices["interfaces"][0]["ports"] = [{"name": "other", "port": 8080}]
    walled = space.apply_vm(manifest).until_status("Running")
    wait_for(lambda: "hyperlet guest ready" in walled.log(), "the guest is up", seconds=90, explain=walled.diagnostics)
    with pytest.raises(OSError, match=r"refused|timed out|unreachable"):
        walled.guest().report()
    walled.discard()


def test_vm_with_readiness_probe_is_ready_once_guest_answers(space: E2eNamespace) -> None:
    probe = {"httpGet": {"path": "/", "port": 80}, "periodSeconds": 1}
    probed = space.apply_vm(booting("probed", readinessProbe=probe)).until_status("Running")
    assert conditions(probed.vmi())["Ready"]["status"] == "False", "ready before the guest has booted"
    probed.answer()
    for thing in (probed.vmi, probed.vm):
        wait_for(
            lambda thing=thing: conditions(thing())["Ready"]["status"] == "True",  # type: ignore[misc]
            "Ready",
            explain=probed.diagnostics,
        )
    probed.discard()


def test_vm_name_of_63_characters_with_dots_runs_and_longer_is_refused(space: E2eNamespace) -> None:
    """Label values and so VM names are limited to 63 characters; a host name has no dots."""
    name = "long." + "x" * 30 + "." + "y" * 27
    assert len(name) == 63
    machine = space.apply_vm(idle(name)).until_status("Running")
    pods = [
        pod
        for pod in space.kubectl.items("pods", "--selector=kubevirt.io=virt-launcher")
        if pod["metadata"]["ownerReferences"][0]["name"] == name
    ]
    assert len(pods) == 1
    machine.discard()
    with pytest.raises(KubectlError, match=r"metadata\.name.*63"):
        space.apply({**idle("longer"), "metadata": {"name": name + "z"}})


def test_vm_without_network_or_operating_system_runs(space: E2eNamespace) -> None:
    bare = space.apply_vm(virtual_machine("bare", halting(), memory="64Mi", network=False, grace=2))
    bare.until_status("Running")
    assert not (bare.vmi() or {})["status"].get("interfaces")
    bare.discard()

"""Privileges of the launcher pod, and forged launcher pods of a user with permissions in one namespace."""

from __future__ import annotations

import pytest

from tests.e2e.manifests import booting
from tests.e2e.processes import processes, wait_for_process
from tests.e2e.support import E2eNamespace, Json, VmUnderTest, assert_stays_true, conditions, deployed_image
from tests.waiting import wait_for

QEMU_ID = "107"


@pytest.fixture(scope="module")
def machine(space: E2eNamespace) -> VmUnderTest:
    """A VM with network, agent and disk."""
    machine = space.apply_vm(booting("walled-in")).until_status("Running")
    machine.answer()
    return machine


def inside(machine: VmUnderTest, *command: str) -> str:
    """Output of a command in the launcher's container, or what kubectl said of its failure."""
    return machine.kubectl("exec", machine.pod()["metadata"]["name"], "-c", "compute", "--", *command, check=False)


# ---- the pod boundary


def test_launcher_processes_have_no_capabilities(machine: VmUnderTest) -> None:
    pod = machine.pod()
    wait_for_process(pod, lambda process: process.is_qemu)
    found = processes(pod, "compute")
    assert any(p.is_supervisor for p in found) and any(p.is_libvirt for p in found) and any(p.is_server for p in found)
    for process in found:
        what = f"{process.name} ({process.command!r})"
        user, group = (str(process.outside(int(QEMU_ID), table)) for table in ("uid_map", "gid_map"))
        assert process.status["Uid"].split() == [user] * 4, what
        assert process.status["Gid"].split() == [group] * 4, what
        assert set(process.status["Groups"].split()) <= {group}, what
        assert process.status["NoNewPrivs"] == "1", what
        for kind in ("CapEff", "CapPrm", "CapInh", "CapBnd", "CapAmb"):
            assert int(process.status[kind], 16) == 0, f"{what} has {kind} {process.status[kind]}"


def test_launcher_pod_spec_requests_no_privileges(machine: VmUnderTest) -> None:
    spec = machine.pod()["spec"]
    assert spec["automountServiceAccountToken"] is False
    assert not any(spec.get(each) for each in ("hostNetwork", "hostPID", "hostIPC"))
    assert spec["securityContext"]["runAsUser"] == spec["securityContext"]["fsGroup"] == int(QEMU_ID)
    for container in spec["containers"]:
        context = container["securityContext"]
        assert context["allowPrivilegeEscalation"] is False
        assert "ALL" in context["capabilities"]["drop"] and not context["capabilities"].get("add")
        assert not context.get("privileged")
    assert not any("hostPath" in volume for volume in spec["volumes"])


def test_launcher_pod_has_no_credentials(machine: VmUnderTest) -> None:
    spec = machine.pod()["spec"]
    mounts = [mount["mountPath"] for container in spec["containers"] for mount in container.get("volumeMounts", [])]
    assert not any("serviceaccount" in path for path in mounts)
    assert not any("secret" in volume or "projected" in volume for volume in spec["volumes"])
    assert "No such file" in inside(machine, "ls", "/var/run/secrets/kubernetes.io")
    script = (
        "import ssl, urllib.request, urllib.error\n"
        "try: print(urllib.request.urlopen('https://kubernetes.default/api/v1/secrets',"
        " context=ssl._create_unverified_context(), timeout=4).status)\n"
        "except urllib.error.HTTPError as refusal: print(refusal.code)\n"
        "except OSError as silence: print('no answer:', silence)\n"
    )
    address = machine.kubectl.in_namespace("default").get("service", "kubernetes")
    assert address
    answer = inside(machine, "python3", "-c", script.replace("kubernetes.default", address["spec"]["clusterIP"]))
    assert answer.split(":")[0].strip() in ("401", "403", "no answer"), answer


def test_launcher_pod_cannot_write_system_directories(machine: VmUnderTest) -> None:
    places = ["/", "/etc", "/usr", "/opt", "/images/root", "/proc/sys/net"]
    script = f"import os; print([place for place in {places} if os.access(place, os.W_OK)])"
    assert inside(machine, "python3", "-c", script).strip() == "[]"


# ---- forged pods


def forged_pod(name: str, machine: VmUnderTest, owners: list[Json]) -> Json:
    """A pod with a launcher's labels and annotations, and a socket where the handler would look for one.

    Each connection to the socket is written to the pod's log.
    """
    uid = (machine.vmi() or {})["metadata"]["uid"]
    script = (
        "import socket\n"
        "listener = socket.socket(socket.AF_UNIX)\n"
        "listener.bind('/run/hyperlet/launcher.sock')\n"
        "listener.listen()\n"
        "print('listening', flush=True)\n"
        "while True:\n"
        "    peer, _ = listener.accept()\n"
        "    print('connected', flush=True)\n"
        "    peer.close()\n"
    )
    container: Json = {
        "name": "compute",
        "image": deployed_image(machine.kubectl, "cluster"),
        "command": ["python3", "-c", script],
        "securityContext": {"runAsUser": int(QEMU_ID)},
        "env": [{"name": "HYPERLET_UID", "value": uid}, {"name": "HYPERLET_NAME", "value": machine.name}],
        "volumeMounts": [{"name": "hyperlet", "mountPath": "/run/hyperlet"}],
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "labels": {
                "kubevirt.io": "virt-launcher",
                "kubevirt.io/created-by": uid,
                "vmi.kubevirt.io/id": machine.name,
            },
            "annotations": {"kubevirt.io/domain": machine.name},
            "ownerReferences": owners,
        },
        "spec": {
            "nodeName": machine.node(),
            "terminationGracePeriodSeconds": 0,
            "containers": [container],
            "volumes": [{"name": "hyperlet", "emptyDir": {}}],
        },
    }


def owner(machine: VmUnderTest, uid: str = "") -> Json:
    """A reference to the machine's instance, or to one of another UID."""
    vmi = machine.vmi()
    assert vmi
    return {
        "apiVersion": "kubevirt.io/v1",
        "kind": "VirtualMachineInstance",
        "name": machine.name,
        "uid": uid or vmi["metadata"]["uid"],
        "controller": True,
    }


def environment(machine: VmUnderTest) -> list[Json]:
    """The environment of the VM's launcher, by which controller and handlers identify launchers."""
    given = {"NAMESPACE": machine.space.name, "NAME": machine.name, "UID": machine.uid()}
    return [{"name": f"HYPERLET_{key}", "value": value} for key, value in given.items()]


@pytest.mark.parametrize("claims", ["labels", "owner-of-another-time", "owner", "environment"])
def test_forged_launcher_pod_does_not_affect_vmi(space: E2eNamespace, machine: VmUnderTest, claims: str) -> None:
    owners = {
        "labels": [],
        # The garbage collector deletes this one at some time.
        "owner-of-another-time": [owner(machine, "00000000-1111-2222-3333-444444444444")],
        "owner": [owner(machine)],
        "environment": [owner(machine)],
    }[claims]
    before = machine.vmi()
    assert before
    name = f"a-{claims}"  # before the real one in every list that is in order
    forged = forged_pod(name, machine, owners)
    if claims == "environment":
        forged["spec"]["restartPolicy"] = "Never"
        forged["spec"]["containers"][0] |= {"name": "compute", "env": environment(machine)}
    space.apply(forged)
    if claims != "owner-of-another-time":
        wait_for(lambda: "listening" in space.kubectl("logs", name), "the forged launcher listens")
    space.kubectl("annotate", "vmi", machine.name, f"e2e.test/{claims}=seen", "--overwrite")

    def unharmed() -> bool:
        now = machine.vmi() or {}
        log = space.kubectl("logs", name, check=False)
        same = all(now["status"][field] == before["status"][field] for field in ("activePods", "phase", "nodeName"))
        return same and conditions(now)["Ready"]["status"] == "True" and (claims != "labels" or "connected" not in log)

    assert_stays_true(
        unharmed, "the VMI status is unchanged, and a pod with labels alone gets no connection", seconds=8
    )
    space.kubectl("delete", "pod", name, "--ignore-not-found", "--wait=false")
    assert machine.phase() == "Running"
    assert machine.guest().report()["bootId"]


def test_failed_forged_launcher_pod_does_not_end_vm(space: E2eNamespace, machine: VmUnderTest) -> None:
    """The end of a pod with a launcher's labels and environment must not count as the VM's end."""
    before = machine.answer()["bootId"]
    pod = forged_pod(f"virt-launcher-{machine.name}-fails", machine, [])
    pod["spec"]["restartPolicy"] = "Never"
    pod["spec"]["containers"][0] |= {"name": "compute", "env": environment(machine)}
    pod["spec"]["containers"][0]["command"] = ["python3", "-c", "raise SystemExit(1)"]
    space.apply(pod)
    wait_for(
        lambda: (space.kubectl.get("pod", pod["metadata"]["name"]) or {})["status"].get("phase") == "Failed",
        "the forged pod has failed",
    )
    assert_stays_true(lambda: machine.phase() == "Running", "the machine runs on")
    assert machine.guest().report()["bootId"] == before
    space.kubectl("delete", "pod", pod["metadata"]["name"])

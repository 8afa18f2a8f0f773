"""Golden files: vmi.yaml → pod.yaml. HYPERLET_REGENERATE=1 in the environment rewrites the pods."""

import os
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from api import defaults, names
from api.errors import InvalidObject
from api.k8s.objects import Node
from api.kubevirt.configuration import DeveloperConfiguration, KubeVirtConfiguration
from api.kubevirt.kubevirt import KubeVirtSpec
from api.kubevirt.vmi import VirtualMachineInstance
from controller.installation.settings import (
    ControllerSettings,
    configuration_of,
    launcher_pull_policy,
    offers_kvm,
    pull_secrets,
)
from controller.launcher_pod import overhead, pod
from controller.launcher_pod import volumes as pod_volumes
from tests.unit.controller.objects import claim, definition, definitions, vmi

GOLDEN = Path(__file__).resolve().parents[3] / "golden" / "pod"
CASES = sorted(folder.name for folder in GOLDEN.iterdir())
CLAIMS = {"data": claim("data"), "block": claim("block", mode="Block")}
NETWORKS = definitions(
    definition("br1", "bridge.network.kubevirt.io/br1"),
    definition("functions", "example.com/sriov_net", "team"),
    definition("plain", None, "team"),
)
EMULATED = KubeVirtConfiguration(developerConfiguration=DeveloperConfiguration(useEmulation=True))
SETTINGS = {
    "image-volumes": ControllerSettings(image_volumes=True),
    "emulated": ControllerSettings(configuration=EMULATED),
    "user-namespace": ControllerSettings(image_volumes=True, user_namespaces=True),
}


def pod_of(case: str) -> dict[str, Any]:
    document = yaml.safe_load((GOLDEN / case / "vmi.yaml").read_text())
    instance = defaults.default_vmi(msgspec.convert(document, VirtualMachineInstance))
    return pod.launcher_pod(instance, SETTINGS.get(case, ControllerSettings()), CLAIMS, NETWORKS)


@pytest.mark.parametrize("case", CASES)
def test_launcher_pod_matches_golden_file(case: str) -> None:
    path = GOLDEN / case / "pod.yaml"
    if os.environ.get("HYPERLET_REGENERATE"):
        path.write_text(yaml.safe_dump(pod_of(case), sort_keys=False, width=120))
    assert pod_of(case) == yaml.safe_load(path.read_text())


@pytest.mark.parametrize("case", CASES)
def test_pod_meets_restricted_pod_security_standard(case: str) -> None:
    """https://kubernetes.io/docs/concepts/security/pod-security-standards/, for the fields of launcher pods."""
    spec = pod_of(case)["spec"]
    (compute,) = spec["containers"]
    assert not {"hostNetwork", "hostPID", "hostIPC", "hostAliases"} & set(spec)
    assert spec["securityContext"]["runAsNonRoot"] is True and spec["securityContext"]["runAsUser"] == 107
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert compute["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "privileged": False,
        "capabilities": {"drop": ["ALL"]},
    }
    assert spec["automountServiceAccountToken"] is False and spec["enableServiceLinks"] is False
    allowed = {"emptyDir", "persistentVolumeClaim", "secret", "configMap", "projected", "image"}
    assert all(set(volume) - {"name"} <= allowed for volume in spec["volumes"])


@pytest.mark.parametrize("case", CASES)
def test_mounts_have_volumes_and_unique_paths(case: str) -> None:
    spec = pod_of(case)["spec"]
    (compute,) = spec["containers"]
    places = [*compute.get("volumeMounts", []), *compute.get("volumeDevices", [])]
    volumes_by_name = [volume["name"] for volume in spec["volumes"]]
    assert sorted(place["name"] for place in places) == sorted(volumes_by_name)
    assert len(set(volumes_by_name)) == len(volumes_by_name)
    paths = [place.get("mountPath") or place["devicePath"] for place in places]
    assert len(set(paths)) == len(paths)


@pytest.mark.parametrize("name", ["..", "a/b", "../../etc", "", "UPPER", "kernel-boot", "a..b", "x" * 300])
def test_volume_name_that_is_no_path_component_is_refused(name: str) -> None:
    spec = {
        "domain": {"devices": {}, "memory": {"guest": "64Mi"}},
        "volumes": [{"name": name, "emptyDisk": {"capacity": "1Gi"}}],
    }
    with pytest.raises(InvalidObject, match="volumes"):
        pod_volumes.parts(vmi(spec=spec).spec, {}, False)


@pytest.mark.parametrize("name", ["hyperlet", "a.b", "x" * 63, "v-hyperlet"])
def test_pod_volume_name_never_collides_with_run_volume(name: str) -> None:
    made = pod_volumes.pod_volume_name(name)
    assert made != pod_volumes.RUN_VOLUME and len(made) <= 63 and "." not in made


def test_long_vmi_name_yields_valid_pod_name_and_labels() -> None:
    instance = msgspec.convert(
        {**msgspec.to_builtins(vmi()), "metadata": {"name": "n" * 253, "uid": "u"}}, VirtualMachineInstance
    )
    made = pod.launcher_pod(instance, ControllerSettings(), {})
    assert len(made["metadata"]["name"]) == 253
    assert all(len(value) <= 63 for value in made["metadata"]["labels"].values())
    assert len(made["spec"]["hostname"]) == 63


# ---- settings


def node(schedulable: str, kvm: str | None, allocatable: str = "1k") -> Node:
    labels = {"kubevirt.io/schedulable": schedulable} | ({} if kvm is None else {"hyperlet/kvm": kvm})
    return msgspec.convert(
        {
            "metadata": {"name": "n", "labels": labels},
            "status": {"allocatable": {"devices.kubevirt.io/kvm": allocatable}},
        },
        Node,
    )


def test_kvm_is_offered_by_schedulable_nodes_with_kvm() -> None:
    assert offers_kvm([node("true", None), node("true", "true")])
    assert not offers_kvm([node("false", "true"), node("true", "false"), node("true", None)])
    assert not offers_kvm([])


def test_allocatable_devices_do_not_count_as_kvm() -> None:
    assert not offers_kvm([node("true", "false", allocatable="1k")])
    assert offers_kvm([node("true", "true", allocatable="0")])


def test_emulation_requires_setting_and_missing_kvm() -> None:
    assert ControllerSettings(configuration=EMULATED).emulated
    assert not ControllerSettings(configuration=EMULATED, kvm_offered=True).emulated
    assert not ControllerSettings().emulated
    assert configuration_of([]) == KubeVirtConfiguration()


def test_pull_secrets_of_disks_and_kubevirt_cr_are_merged() -> None:
    disk = {"image": "r.x/disk:1", "imagePullSecret": "disks"}
    spec = {
        "domain": {"devices": {}, "memory": {"guest": "64Mi"}},
        "volumes": [{"name": "a", "containerDisk": disk}, {"name": "b", "containerDisk": disk}],
    }
    installed = msgspec.convert(
        {"imagePullSecrets": [{"name": "ours"}, {"name": "disks"}, {}], "imagePullPolicy": "Always"}, KubeVirtSpec
    )
    settings = ControllerSettings(
        pull_secrets=pull_secrets(installed), launcher_pull_policy=launcher_pull_policy(installed), image_volumes=True
    )
    made = pod.launcher_pod(vmi(spec=spec), settings, {})["spec"]
    assert made["imagePullSecrets"] == [{"name": "disks"}, {"name": "ours"}]
    assert made["containers"][0]["imagePullPolicy"] == "Always"
    nearer = msgspec.convert({"configuration": {"imagePullPolicy": "Never"}, "imagePullPolicy": "Always"}, KubeVirtSpec)
    assert launcher_pull_policy(nearer) == "Never"
    assert pull_secrets(KubeVirtSpec()) == () and launcher_pull_policy(KubeVirtSpec()) is None


def test_overhead_grows_with_devices() -> None:
    def of(**domain: Any) -> int:
        spec = {"domain": {"devices": {}, "memory": {"guest": "1Gi"}, **domain}}
        return overhead.overhead_bytes(vmi(spec=spec).spec, emulated=False) >> 20

    small = of()
    assert of(cpu={"cores": 5}) == small + 4 * (overhead.PER_VCPU >> 20)
    assert of(memory={"guest": "3Gi"}) == small + 4
    assert of(devices={"autoattachGraphicsDevice": False}) == small - (overhead.GRAPHICS >> 20)
    assert of(memory={"guest": "1Gi", "reservedOverhead": {"addedOverhead": "10Mi"}}) == small + 10


def _pod_with(**spec: Any) -> dict[str, Any]:
    document = yaml.safe_load((GOLDEN / "minimal" / "vmi.yaml").read_text())
    document["spec"] |= spec
    instance = defaults.default_vmi(msgspec.convert(document, VirtualMachineInstance))
    made: dict[str, Any] = pod.launcher_pod(instance, ControllerSettings(), CLAIMS, NETWORKS)["spec"]
    return made


def test_pod_grace_period_is_capped_at_one_day() -> None:
    made = _pod_with(terminationGracePeriodSeconds=10_000_000_000_000)
    assert made["terminationGracePeriodSeconds"] == 86430
    assert {"name": "HYPERLET_GRACE_SECONDS", "value": "86400"} in made["containers"][0]["env"]


EMPTY_DISK = {"name": "scratch", "emptyDisk": {"capacity": "1Gi"}}
IMAGE = {"name": "root", "containerDisk": {"image": "registry.local/disk:1"}}
SEED = {"name": "seed", "cloudInitNoCloud": {"userData": "#cloud-config"}}


@pytest.mark.parametrize(
    ("volumes", "resources", "limit", "requests", "limits"),
    [
        ([], {}, "128Mi", "48Mi", None),
        ([SEED], {}, "136Mi", "56Mi", None),
        # Capacity, plus 1/4096 of it and 2 MiB for qcow2 metadata, plus the pod's own bytes.
        ([EMPTY_DISK], {}, "1181952Ki", "1100032Ki", None),
        # An overlay of an image has no limit unless the VM sets one.
        ([IMAGE], {}, None, "112Mi", None),
        ([IMAGE], {"limits": {"ephemeral-storage": "1Gi"}}, None, "112Mi", "1072Mi"),
        ([IMAGE], {"limits": {"ephemeral-storage": "8Mi"}}, None, "56Mi", "56Mi"),
        ([IMAGE, EMPTY_DISK], {"requests": {"ephemeral-storage": "10Gi"}}, None, "10288Mi", None),
    ],
)
def test_ephemeral_storage(
    volumes: list[Any], resources: dict[str, Any], limit: str | None, requests: str, limits: str | None
) -> None:
    domain = {"devices": {}, "memory": {"guest": "1Gi"}, "resources": resources}
    made = _pod_with(domain=domain, volumes=volumes)
    (run,) = [volume for volume in made["volumes"] if volume["name"] == "hyperlet"]
    assert run["emptyDir"].get("sizeLimit") == limit
    amounts = made["containers"][0]["resources"]
    assert amounts["requests"]["ephemeral-storage"] == requests
    assert amounts["limits"].get("ephemeral-storage") == limits


def test_container_ports_are_those_of_the_interfaces() -> None:
    ports = [{"name": "web", "port": 80}, {"port": 53, "protocol": "UDP"}]
    nic = {"name": "default", "masquerade": {}, "ports": ports}
    spec = {"domain": {"devices": {"interfaces": [nic]}, "memory": {"guest": "64Mi"}}}
    spec |= {"networks": [{"name": "default", "pod": {}}], "livenessProbe": {"tcpSocket": {"port": "web"}}}
    (compute,) = pod.launcher_pod(vmi(spec=spec), ControllerSettings(), {})["spec"]["containers"]
    assert compute["ports"] == [
        {"name": "web", "containerPort": 80, "protocol": "TCP"},
        {"containerPort": 53, "protocol": "UDP"},
    ]
    assert compute["livenessProbe"]["tcpSocket"]["port"] == "web"


@pytest.mark.parametrize(
    ("theirs", "shown"), [({}, "compute"), ({names.ANNOTATION_DEFAULT_CONTAINER: "proxy"}, "proxy")]
)
def test_default_container_is_compute_unless_overridden(theirs: dict[str, str], shown: str) -> None:
    annotations = pod.launcher_pod(vmi(annotations=theirs), ControllerSettings(), {})["metadata"]["annotations"]
    assert annotations[names.ANNOTATION_DEFAULT_CONTAINER] == shown
    forged = pod.launcher_pod(vmi(annotations={names.ANNOTATION_DOMAIN: "other"}), ControllerSettings(), {})
    assert forged["metadata"]["annotations"][names.ANNOTATION_DOMAIN] == "web"

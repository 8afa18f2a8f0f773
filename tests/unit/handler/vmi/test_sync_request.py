"""What a launcher is told of its VMI."""

from typing import Any

import pytest

from api.kubevirt.vmi import VirtualMachineInstance
from api.schema import codec
from handler.vmi import sync_request
from protos import launcher_pb2 as pb

INTERFACES = [
    {"name": "a", "bridge": {}},
    {"name": "b", "bridge": {}, "state": "down"},
    {"name": "c", "bridge": {}, "state": "absent"},
    {"name": "d", "bridge": {}, "state": "up"},
    {"name": "vf", "sriov": {}, "state": "down"},
]
VOLUMES = [
    {"name": "root", "containerDisk": {"image": "guest"}},
    {"name": "data", "persistentVolumeClaim": {"claimName": "data-claim"}},
    {"name": "imported", "dataVolume": {"name": "dv"}},
    {"name": "new", "persistentVolumeClaim": {"claimName": "unbound"}},
]


def claim_status(name: str, **info: Any) -> dict[str, Any]:
    return {"name": name, "target": "", "persistentVolumeClaimInfo": info}


STATUS = [
    {"name": "root", "target": "vda"},
    claim_status("data", claimName="data-claim", capacity={"storage": "1Gi"}),
    claim_status("imported", capacity={"storage": "64Mi"}),
    claim_status("new", requests={"storage": "2Gi"}),
]


def vmi(status: dict[str, Any] | None = None, **spec: Any) -> VirtualMachineInstance:
    document = {
        "apiVersion": "kubevirt.io/v1",
        "kind": "VirtualMachineInstance",
        "metadata": {"name": "vm", "uid": "uid-1"},
        "spec": {"domain": {"devices": {"interfaces": INTERFACES}}, "volumes": VOLUMES, **spec},
    }
    return codec.decode(VirtualMachineInstance, document | ({"status": status} if status is not None else {}))


def test_request_has_the_facts_of_the_vmi() -> None:
    given = vmi({"volumeStatus": STATUS})
    nic = pb.Nic(name="a", tap="tap0")
    request = sync_request.build(given, [nic])
    assert codec.decode(VirtualMachineInstance, request.vmi) == given
    assert (request.vmi_uid, list(request.nics)) == ("uid-1", [nic])
    assert [(link.name, link.up) for link in request.links] == [("a", True), ("b", False), ("d", True), ("vf", True)]
    assert [(claim.volume, claim.name, claim.capacity) for claim in request.claims] == [
        ("data", "data-claim", "1Gi"), ("imported", "dv", "64Mi"), ("new", "unbound", "")]  # fmt: skip


@pytest.mark.parametrize("status", [None, {}, {"volumeStatus": []}, {"volumeStatus": [{"name": "data", "target": ""}]}])
def test_vmi_without_claim_status_has_no_capacities(status: dict[str, Any] | None) -> None:
    given = vmi(status)
    assert sync_request.capacities(given) == {}
    assert [claim.capacity for claim in sync_request.claims(given)] == ["", "", ""]


def test_vmi_without_interfaces_and_volumes() -> None:
    request = sync_request.build(vmi(domain={"devices": {}}, volumes=None), [])
    assert (list(request.links), list(request.claims)) == ([], [])

"""Lenient and strict decoding, and paths of faults."""

import pytest

from api import errors, names
from api.errors import InvalidObject
from api.k8s import objects
from api.kubevirt.vm import VirtualMachine
from api.schema.codec import decode, decode_strict, encode, to_dict
from api.schema.shape import knows, struct_shape, unknown_fields
from tests.unit.api.vm_manifests import MACHINE, machine


def faults_of(document: object) -> dict[str, str]:
    with pytest.raises(InvalidObject) as caught:
        decode_strict(VirtualMachine, document)  # type: ignore[arg-type]
    return {fault.path: fault.message for fault in caught.value.faults}


def test_strict_reports_every_unknown_field() -> None:
    document = machine({"/spec.runStratgy": "Always", "domain.devices.disks.0.bootorder": 1, "foo": {"bar": []}})
    assert faults_of(document) == {
        "spec.runStratgy": "unknown field 'runStratgy'; did you mean runStrategy?",
        "spec.template.spec.domain.devices.disks[0].bootorder": "unknown field 'bootorder'; did you mean bootOrder?",
        "spec.template.spec.foo": "unknown field 'foo'",
    }


def test_lenient_skips_unknown_fields() -> None:
    document = machine({"/spec.runStratgy": "Always", "/status": {"printableStatus": "Running", "newer": {"a": 1}}})
    vm = decode(VirtualMachine, encode(document))
    assert vm.status is not None and vm.status.printableStatus == "Running"
    assert to_dict(vm)["spec"] == MACHINE["spec"]


def test_strict_reports_every_invalid_value() -> None:
    document = machine(
        {
            "/metadata.labels": {"a": 1},
            "domain.cpu": {"cores": "two"},
            "domain.devices.disks": {},
            "domain.devices.rng": [],
            "volumes.0.containerDisk.imagePullPolicy": "Sometimes",
            "volumes.1": {},
        }
    )
    assert faults_of(document) == {
        "metadata.labels.a": "1: expected str, got int",
        "spec.template.spec.domain.cpu.cores": "'two': expected int, got str",
        "spec.template.spec.domain.devices.disks": "expected a list, got an object",
        "spec.template.spec.domain.devices.rng": "expected an object, got a list",
        "spec.template.spec.volumes[0].containerDisk.imagePullPolicy":
            "'Sometimes' is not one of: Always, IfNotPresent, Never",
        "spec.template.spec.volumes[1].name": "this field is required",
    }  # fmt: skip


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"3", b"\xff\xfe", b'{"kind": "\xc3("}'])
def test_non_object_raises_invalid_object(text: bytes) -> None:
    for function in (decode, decode_strict):
        with pytest.raises(InvalidObject):
            function(VirtualMachine, text)


def test_both_versions_decode() -> None:
    for version in (names.API_VERSION, f"{names.GROUP}/{names.OLD_VERSION}"):
        assert decode_strict(VirtualMachine, machine({"/apiVersion": version})).apiVersion == version


def test_explicit_empty_values_round_trip() -> None:
    document = machine({"domain.devices.rng": {}, "domain.devices.gpus": [], "hostname": "", "nodeSelector": {}})
    assert to_dict(decode_strict(VirtualMachine, document)) == document


def test_a_pod_from_a_list_decodes() -> None:
    pod = decode(
        objects.Pod,
        b'{"metadata": {"name": "p"}, "spec": {"nodeName": "n", "volumes": [{}]}, "status": {"containerStatuses": ['
        b'{"name": "compute", "state": {"waiting": {"reason": "ErrImagePull"}}}], "podIPs": [{"ip": "10.0.0.1"}]}}',
    )
    statuses = pod.status.containerStatuses or []
    assert statuses[0].state is not None and statuses[0].state.waiting is not None
    assert statuses[0].state.waiting.reason == "ErrImagePull"
    assert decode(objects.Pod, {}) == objects.Pod()


def test_errors_have_the_reason_of_their_name() -> None:
    classes = [cls for cls in errors.HyperletError.__subclasses__() if cls.__module__ == errors.__name__]
    assert {cls.__name__ for cls in classes} >= {
        "InvalidObject", "NotFound", "Conflict", "ApiUnavailable", "Forbidden", "LauncherUnavailable",
        "ImagePullFailed", "VolumeError", "NetworkError",
    }  # fmt: skip
    for cls in classes:
        assert cls.reason == cls.__name__
    assert str(errors.InvalidObject([errors.Fault("spec.a", "R", "is bad")])) == "spec.a: is bad"


@pytest.mark.parametrize("path", ["", "nonsense", "domain.nonsense", "domain.devices.disks.0.nonsense", "volumes.0.x"])
def test_knows_agrees_with_unknown_fields(path: str) -> None:
    shape = struct_shape(VirtualMachine)
    document = machine({path: {"a": 1}} if path else {})
    assert knows(shape, document) is (not path) is (not list(unknown_fields(shape, document)))

"""VMI → domain XML, reviewed as diffs: `pytest tests/unit/launcher --regenerate` writes what it would compare with."""

import json
import pathlib
import shutil
import subprocess
from typing import Any

import pytest
import yaml

from api import defaults
from api.kubevirt.vmi import VirtualMachineInstance
from api.schema import codec
from launcher.domain import sriov
from launcher.domain.build import build
from launcher.domain.facts import DiskFacts, NicFacts, PodFacts
from launcher.paths import Paths

GOLDEN = pathlib.Path(__file__).parents[3] / "golden/domain"
SCHEMA = pathlib.Path("/usr/share/libvirt/schemas/domain.rng")
ENVIRONMENT = {
    "KUBEVIRT_RESOURCE_NAME_fast": "example.com/fast-nics",
    "KUBEVIRT_RESOURCE_NAME_faster": "example.com/fast-nics",
    "PCIDEVICE_EXAMPLE_COM_FAST_NICS": "0000:81:01.2,0000:81:01.5",
}
"""What a device plugin and the controller put into the pod of the cases with SR-IOV."""
CASES = sorted(path.stem for path in GOLDEN.glob("*.yaml"))


def load(case: str) -> VirtualMachineInstance:
    document = yaml.safe_load((GOLDEN / f"{case}.yaml").read_text())
    document |= {"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance"}
    return defaults.default_vmi(codec.decode_strict(VirtualMachineInstance, json.dumps(document)))


def disk(volume: Any) -> DiskFacts:
    """What `launcher.storage.disks` finds, without a pod."""
    name, size = volume.name, 1 << 30
    if volume.containerDisk:
        return DiskFacts(
            name,
            f"/run/hyperlet/disks/{name}.qcow2",
            "qcow2",
            size=size,
            ephemeral=True,
            backing=f"/images/{name}/disk/{name}.img",
            backing_format="raw",
        )
    if volume.persistentVolumeClaim and name == "block":
        return DiskFacts(name, f"/dev/volumes/{name}", size=size, block=True, direct=True)
    if volume.persistentVolumeClaim:
        read_only = bool(volume.persistentVolumeClaim.readOnly)
        return DiskFacts(name, f"/volumes/{name}/disk.img", size=size, direct=True, readonly=read_only)
    if volume.emptyDisk:
        return DiskFacts(name, f"/run/hyperlet/disks/{name}.img", size=size, ephemeral=True)
    return DiskFacts(name, f"/run/hyperlet/media/{name}.iso", size=1 << 20, readonly=True)


def facts_of(vmi: VirtualMachineInstance, kvm: bool) -> PodFacts:
    firmware = vmi.spec.domain.firmware
    kernel = firmware is not None and firmware.kernelBoot is not None
    return PodFacts(
        paths=Paths(),
        kvm=kvm,
        vhost=kvm,
        nics=[
            NicFacts(interface.name, f"tap{index}", interface.macAddress or "", 1450, 2 if index == 0 else 1)
            for index, interface in enumerate(vmi.spec.domain.devices.interfaces or [])
        ],
        functions=sriov.functions(vmi, ENVIRONMENT),
        disks={volume.name: disk(volume) for volume in vmi.spec.volumes or []},
        kernel="/images/kernel-boot/boot/kernel" if kernel else None,
        initrd="/images/kernel-boot/boot/initrd" if kernel else None,
    )


@pytest.mark.parametrize("kvm", [True, False], ids=["kvm", "tcg"])
@pytest.mark.parametrize("case", CASES)
def test_golden(case: str, kvm: bool, request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> None:
    vmi = load(case)
    text = build(vmi, facts_of(vmi, kvm)).text()
    golden = GOLDEN / f"{case}.{'kvm' if kvm else 'tcg'}.xml"
    if request.config.getoption("--regenerate"):
        golden.write_text(text)
    assert text == golden.read_text()


@pytest.mark.skipif(not SCHEMA.exists() or not shutil.which("xmllint"), reason="needs libvirt's schemas and xmllint")
@pytest.mark.parametrize("golden", sorted(GOLDEN.glob("*.xml")), ids=lambda path: path.name)
def test_golden_fits_libvirts_schema(golden: pathlib.Path) -> None:
    run = subprocess.run(["xmllint", "--noout", "--relaxng", SCHEMA, golden], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr

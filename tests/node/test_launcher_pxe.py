"""A guest without any disk boots over a test network: DHCP, TFTP, an iPXE script, a kernel and an initramfs."""

import contextlib
import copy
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from guests import packages, tiny
from guests.disk import KERNEL_ARGS
from protos import launcher_pb2 as pb
from tests.node import netlab
from tests.node.launcherguest import BRIDGE, MAC, NIC, ask
from tests.node.launcherlab import Pod, vmi
from tests.waiting import wait_for

pytestmark = pytest.mark.node
CABLE = copy.deepcopy(NIC)
CABLE.mtu = 1500  # as the bridge's: iPXE's TFTP asks for packets that fill it
SCRIPT = f"#!ipxe\nkernel kernel {KERNEL_ARGS} guest.from-the-network\ninitrd initrd\nboot\n"


def document(**options: Any) -> dict[str, Any]:
    interface = {"name": "default", "bridge": {}, "macAddress": MAC, "bootOrder": 1, **options}
    return vmi(
        "pxe",
        domain={
            "memory": {"guest": "192Mi"},
            "devices": {"interfaces": [interface], "autoattachGraphicsDevice": False},
        },
        networks=[{"name": "default", "multus": {"networkName": "boot"}}],
    )


@contextlib.contextmanager
def boot_server(
    folder: pathlib.Path, network: netlab.Namespace, *options: str, kernel: str = packages.KERNEL_META
) -> Iterator[None]:
    """dnsmasq in the network, with the guest's kernel and the script that names it."""
    built = tiny.build(kernel)
    folder.chmod(0o755)
    for name in ("kernel", "initrd"):
        shutil.copyfile(built.folder / name, folder / name)
        (folder / name).chmod(0o644)
    (folder / "boot.ipxe").write_text(SCRIPT)
    server = network.start(
        "dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--pid-file=", "--port=0", "--user=root",
        "--log-facility=-", "--interface=k6t-eth0", "--enable-tftp", f"--tftp-root={folder}", "--leasefile-ro",
        *options,
    )  # fmt: skip
    try:
        yield
    finally:
        server.kill()
        server.communicate()


@pytest.fixture
def network() -> Iterator[netlab.Namespace]:
    network = netlab.Namespace()
    try:
        network.run(BRIDGE)
        yield network
    finally:
        network.close()


def boots(network: netlab.Namespace, nic: pb.Nic, document: dict[str, Any]) -> None:
    with Pod() as pod:
        pod.start(network.pid)
        report = pod.sync(document, [nic])
        assert not report.disks
        told = wait_for(lambda: ask(network), "the guest to boot from the network and answer", 180)
        assert "guest.from-the-network" in told["cmdline"]
        assert told["interfaces"][0]["mac"] == MAC


def test_dhcp_options_of_vmi_set_boot_server_and_file(network: netlab.Namespace, tmp_path: pathlib.Path) -> None:
    with boot_server(tmp_path, network):
        options = {"bootFileName": "boot.ipxe", "tftpServerName": "10.0.2.1"}
        boots(network, CABLE, document(dhcpOptions=options))


def test_external_dhcp_server_boots_guest_without_ipam_address(
    network: netlab.Namespace, tmp_path: pathlib.Path
) -> None:
    nic = copy.deepcopy(CABLE)
    nic.ClearField("dhcp4")
    nic.ClearField("dhcp6")
    dhcp = ("--dhcp-range=10.0.2.2,10.0.2.2,10m", "--dhcp-boot=boot.ipxe")
    with boot_server(tmp_path, network, *dhcp, kernel=packages.GENERIC_META):
        boots(network, nic, document(model="e1000"))

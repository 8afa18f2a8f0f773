"""The CSI specification's own test (csi-sanity) against the driver as it runs on a node, for both kinds of storage."""

from __future__ import annotations

import secrets
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from cluster import binaries
from cluster.csi.kinds import KINDS
from tests.e2e.support import EXISTING, ROOT, project

# It lists all volumes and snapshots, which other tests must not change meanwhile.
pytestmark = pytest.mark.alone

SKIPPED = {
    "GroupControllerService not supported": "snapshots of several volumes at once: nothing of hyperlet's asks for them",
    "ControllerModifyVolume not supported": "volumes have no parameters that could be modified",
    "Modify volume not supported": "volumes have no parameters that could be modified",
    "Modify Volume not supported": "volumes have no parameters that could be modified",
    "GetSnapshot not supported": "alpha in CSI 1.13; the snapshotter lists instead",
    "SNAPSHOT_ACCESSIBILITY_CONSTRAINTS not supported": "alpha in CSI 1.13; a snapshot can be restored on any node",
    "ControllerListVolumeHealth not supported": "alpha in CSI 1.13, no sidecar asks",
    "ControllerGetVolumeHealth not supported": "alpha in CSI 1.13, no sidecar asks",
    "NodeGetVolumeHealth not supported": "alpha in CSI 1.13, no kubelet asks",
    "NodeGetStorageHealth not supported": "alpha in CSI 1.13, no kubelet asks",
    "pending": "csi-sanity itself has it switched off (a list that changes between two pages)",
}
"""Skip messages of csi-sanity, and why each is expected."""

SKIPPED_OF_LOCAL = {
    "ControllerPublishVolume not supported": "a local volume is not attached (attachRequired is false)",
    "ControllerUnpublishVolume not supported": "a local volume is not attached (attachRequired is false)",
    "Controller Publish, UnpublishVolume not supported": "a local volume is not attached (attachRequired is false)",
}
CHECKS = {"local": 68, "shared": 78}
"""Minimum number of checks that run: fewer would mean that more is skipped."""


@pytest.fixture(scope="module", autouse=True)
def storage() -> None:
    """Installed on first use."""
    project("cluster", "storage")


@pytest.mark.skipif(EXISTING, reason="needs nodes of its own")
@pytest.mark.parametrize("access", ["mount", "block"])
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_csi_sanity_checks_pass(kind: str, access: str) -> None:
    # A binary that was built after the node had started may not be visible there: copy it.
    folder = f"/run/csi-sanity-{secrets.token_hex(3)}"
    endpoint = f"/var/lib/kubelet/plugins/{KINDS[kind].driver}/csi.sock"
    command = [
        f"{folder}/csi-sanity", f"--csi.endpoint={endpoint}", f"--csi.testvolumeaccesstype={access}",
        f"--csi.mountdir={folder}/mount", f"--csi.stagingdir={folder}/staging",
        f"--csi.testvolumesize={1 << 30}", f"--csi.testvolumeexpandsize={2 << 30}", "--csi.testnodevolumeattachlimit",
        "--ginkgo.no-color",
        f"--ginkgo.junit-report={folder}/report.xml",
    ]  # fmt: skip
    receive = f"mkdir {folder} && cat >{folder}/csi-sanity && chmod +x {folder}/csi-sanity"
    done = in_node("sh", "-c", receive, stdin=binaries.program("csi-sanity"))
    assert done.returncode == 0, done.stderr
    done = in_node(*command)
    report = in_node("cat", f"{folder}/report.xml").stdout
    in_node("rm", "-rf", folder)
    assert done.returncode == 0, f"{done.stdout[-6000:]}\n{done.stderr[-2000:]}"
    cases = list(ET.fromstring(report).iter("testcase"))
    reasons = SKIPPED | ({} if KINDS[kind].shared else SKIPPED_OF_LOCAL)
    unexplained = [case.get("name") for case in cases if (why := skip_reason(case)) and why not in reasons]
    assert not unexplained, f"skipped without a reason in this file: {unexplained}"
    ran = [case for case in cases if case.get("status") == "passed"]
    assert len(ran) >= CHECKS[kind], f"{len(ran)} of {len(cases)} checks ran"
    assert left_behind(kind) == [], "volumes and snapshots that csi-sanity made are still there"


def skip_reason(case: ET.Element) -> str:
    """The skip message of a check; empty if it ran."""
    skipped = case.find("skipped")
    return "" if skipped is None else skipped.get("message", "").removeprefix("skipped - ")


def in_node(*command: str, stdin: Path = Path("/dev/null")) -> subprocess.CompletedProcess[str]:
    """Run a command in node1, where csi-sanity is the kubelet."""
    words = [sys.executable, "-m", "cluster", "exec", "node1", "--", *command]
    with stdin.open("rb") as stream:
        return subprocess.run(words, cwd=ROOT, stdin=stream, text=True, capture_output=True, check=False, timeout=540)


def left_behind(kind: str) -> list[str]:
    """Volumes of csi-sanity's naming that the driver still has."""
    listing = in_node("grep", "-rlE", '"name": "(sanity|.*-sanity)', f"/var/lib/storage/{kind}").stdout
    return listing.split()

"""The CSI specification's own test (csi-sanity) against the driver as it runs on a node, for both kinds of storage."""

from __future__ import annotations

import re
import secrets
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from cluster import binaries
from cluster.csi.kinds import KINDS
from tests.e2e.support import EXISTING, ROOT, project

SKIPPED = {
    r"GroupController": "groups of volumes are no part of the driver: nothing of hyperlet's snapshots several at once",
    r"ModifyVolume|VolumeAttributesClass|mutable parameters": "volumes have no parameters that could be modified",
    r"VolumeHealth|StorageHealth|GetSnapshot": "alpha in CSI 1.13: no sidecar calls it",
    r"SNAPSHOT_ACCESSIBILITY|[Ss]napshot.*(topology|accessib)": "alpha in CSI 1.13; snapshots are reachable everywhere",
    r"maximum number of attached volumes": "takes a driver with a small limit: ours is that of the loop devices",
}
"""What is skipped, by what the names of its checks match, and why."""

SKIPPED_OF_LOCAL = {
    r"Controller(Publish|Unpublish)Volume": "local volumes are not attached (attachRequired is false)",
}


@pytest.fixture(scope="module", autouse=True)
def storage() -> None:
    """Installed on first use."""
    project("cluster", "storage")


@pytest.mark.skipif(EXISTING, reason="needs nodes of its own")
@pytest.mark.parametrize("access", ["mount", "block"])
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_csi_sanity(kind: str, access: str, tmp_path: Path) -> None:
    # The node's root is the machine's, with the changes in memory: this folder and the program are seen there as well,
    # the report that is written in the node is not seen here.
    folder = f"/run/csi-sanity-{secrets.token_hex(3)}"
    endpoint = f"/var/lib/kubelet/plugins/{KINDS[kind].driver}/csi.sock"
    command = [
        str(binaries.program("csi-sanity")), f"--csi.endpoint={endpoint}", f"--csi.testvolumeaccesstype={access}",
        f"--csi.mountdir={folder}/mount", f"--csi.stagingdir={folder}/staging",
        f"--csi.testvolumesize={1 << 30}", f"--csi.testvolumeexpandsize={2 << 30}", "--ginkgo.no-color",
        f"--ginkgo.junit-report={folder}/report.xml",
    ]  # fmt: skip
    done = in_node("mkdir", folder)
    assert done.returncode == 0, done.stderr
    done = in_node(*command)
    report = in_node("cat", f"{folder}/report.xml").stdout
    assert done.returncode == 0, f"{done.stdout[-6000:]}\n{done.stderr[-2000:]}"
    cases = list(ET.fromstring(report).iter("testcase"))
    ran = [case for case in cases if case.get("status") == "passed"]
    skipped = [case.get("name", "") for case in cases if case.find("skipped") is not None]
    reasons = SKIPPED | ({} if KINDS[kind].shared else SKIPPED_OF_LOCAL)
    unexplained = [name for name in skipped if not any(re.search(pattern, name) for pattern in reasons)]
    assert not unexplained, f"skipped without a reason in this file: {unexplained}"
    assert len(ran) >= 60, f"only {len(ran)} of {len(cases)} checks ran"
    assert left_behind(kind) == [], "volumes and snapshots that csi-sanity made are still there"


def in_node(*command: str) -> subprocess.CompletedProcess[str]:
    """Run a command in node1, where csi-sanity is the kubelet."""
    words = [sys.executable, "-m", "cluster", "exec", "node1", "--", *command]
    return subprocess.run(words, cwd=ROOT, text=True, capture_output=True, check=False, timeout=540)


def left_behind(kind: str) -> list[str]:
    """Volumes of csi-sanity's naming that the driver still has."""
    listing = in_node("grep", "-rlE", '"name": "(sanity|.*-sanity)', f"/var/lib/storage/{kind}").stdout
    return listing.split()

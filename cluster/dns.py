"""Cluster DNS: CoreDNS, as a Deployment on the nodes."""

from __future__ import annotations

import string
from pathlib import Path

from cluster import binaries, components, images, paths
from cluster.console import ProgressConsole
from cluster.kubectl import Kubectl
from cluster.state import ClusterState

MANIFEST = Path(__file__).with_name("dns.yaml")


def manifest(image: str, address: str) -> str:
    """The objects, with the image's reference and the Service's address."""
    return string.Template(MANIFEST.read_text()).substitute(IMAGE=image, ADDRESS=address, DOMAIN=components.DOMAIN)


def deploy(console: ProgressConsole, known: ClusterState, names: list[str]) -> None:
    """Build what is missing, load it into these nodes, apply, wait. Errors: ClusterError."""
    binaries.build(console, binaries.DNS)
    reference, archive = images.program_archive("coredns")
    images.load(console, [archive], names)
    kubectl = Kubectl(paths.KUBECONFIG)
    with console.step("CoreDNS"):
        kubectl("apply", "-f", "-", stdin=manifest(reference, known.plan.dns))
        kubectl("rollout", "status", "deployment/coredns", "--namespace=kube-system", "--timeout=120s")

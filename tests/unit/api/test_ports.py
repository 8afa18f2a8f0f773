import pathlib

import pytest
import yaml

from api import ports

MANIFESTS = pathlib.Path(__file__).parents[3] / "manifests"


@pytest.mark.parametrize(
    ("component", "numbers"),
    [
        ("controller", {ports.HEALTH}),
        ("gateway", {ports.GATEWAY, ports.HEALTH}),
        ("handler", {ports.HANDLER, ports.HEALTH}),
    ],
)
def test_manifests_declare_the_ports(component: str, numbers: set[int]) -> None:
    documents = yaml.safe_load_all((MANIFESTS / f"{component}.yaml").read_text())
    pods = [
        each["spec"]["template"]["spec"] for each in documents if each and each["kind"] in ("Deployment", "DaemonSet")
    ]
    declared = {
        port["containerPort"] for pod in pods for container in pod["containers"] for port in container.get("ports", ())
    }
    assert declared == numbers

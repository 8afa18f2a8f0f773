"""`hyperctl virsh`: selection of the pod, and kubectl's command line."""

from cli import virsh
from cli.settings import CliSettings


def pod(name: str, phase: str) -> dict[str, dict[str, str]]:
    return {"metadata": {"name": name}, "status": {"phase": phase}}


def test_running_pod_is_selected() -> None:
    ended, runs = pod("virt-launcher-web-aaaaa", "Succeeded"), pod("virt-launcher-web-bbbbb", "Running")
    assert virsh.pod_of({"items": [ended, runs]}) == "virt-launcher-web-bbbbb"
    assert virsh.pod_of({"items": [ended, pod("forged", "Running")]}) is None
    assert virsh.pod_of({}) is None


def test_kubectl_gets_global_flags() -> None:
    words = virsh.words_of(CliSettings(context="lab", namespace="other"), "ns", "p", ("dumpxml",))
    where = ["--namespace=ns", "exec", "p", "--container=compute"]
    assert words == ["kubectl", "--context=lab", *where, "--", "virsh", "dumpxml"]

"""Refusals of launcher pods by quotas and LimitRanges: added limits, and fields of the VM in messages."""

from typing import Any

import pytest

from controller.installation.settings import ControllerSettings
from controller.launcher_pod import pod, quota_errors
from tests.unit.controller.objects import vmi

LACKING = "failed quota: q: must specify limits.cpu for: compute; limits.memory for: compute"
DEFAULTED = (
    'Pod "virt-launcher-web-x" is invalid: spec.containers[0].resources.requests: Invalid value: "1Gi": must be less '
    "than or equal to memory limit of 512Mi"
)
RANGE = 'pods "x" is forbidden: maximum memory usage per Container is 1Gi, but limit is 2Gi'
EXCEEDED = (
    'pods "x" is forbidden: exceeded quota: q, requested: limits.memory=2Gi,requests.cpu=1, used: limits.memory=0'
)


def added(message: str, **domain: Any) -> tuple[dict[str, str] | None, dict[str, str]]:
    """The added limits, and the pod's unchanged requests."""
    domain = {"devices": {}, "memory": {"guest": "64Mi"}, **domain}
    instance = vmi(spec={"domain": domain})
    made = pod.launcher_pod(instance, ControllerSettings(), {})
    bounded = quota_errors.with_limits(made, instance.spec, ControllerSettings(), message)
    before = made["spec"]["containers"][0]["resources"]
    if bounded is None:
        return None, before["requests"]
    after = bounded["spec"]["containers"][0]["resources"]
    assert after["requests"] == before["requests"]
    return {key: each for key, each in after["limits"].items() if key not in before["limits"]}, before["requests"]


@pytest.mark.parametrize(
    ("message", "wanted"),
    [
        (LACKING, {"cpu", "memory"}),
        ("failed quota: q: must specify limits.cpu,requests.storage", {"cpu"}),
        ("failed quota: q: must specify limits.ephemeral-storage for: compute", set()),
        (DEFAULTED, {"memory"}),
        (RANGE, set()),
        (EXCEEDED, set()),
        ("limits.cpu", set()),
    ],
)
def test_limits_required_by_refusal(message: str, wanted: set[str]) -> None:
    assert quota_errors.wanted_limits(message) == wanted


def test_added_limits_are_one_cpu_per_vcpu_and_guest_memory_plus_overhead() -> None:
    limits, requests = added(LACKING, cpu={"cores": 3})
    assert limits == {"cpu": "3", "memory": requests["memory"]}
    assert added(DEFAULTED)[0] == {"memory": added(DEFAULTED)[1]["memory"]}


def test_added_limit_is_not_below_request() -> None:
    limits, requests = added(LACKING, resources={"requests": {"memory": "1Gi", "cpu": "2"}})
    assert limits == {"cpu": "2", "memory": requests["memory"]}


def test_no_retry_if_limits_do_not_help() -> None:
    assert added(RANGE)[0] is None
    assert added(LACKING, resources={"limits": {"cpu": "1", "memory": "64Mi"}})[0] is None


@pytest.mark.parametrize(
    ("message", "fields"),
    [
        (RANGE, "resources.requests.memory, memory.guest, resources.limits.memory"),
        (EXCEEDED, "resources.limits.memory, memory.guest, resources.requests.cpu"),
        ("must specify limits.ephemeral-storage for: compute", "resources.limits.ephemeral-storage"),
        ("minimum cpu usage per Pod is 1, but request is 100m", "resources.requests.cpu, resources.limits.cpu"),
        (
            "memory max limit to request ratio per Container is 2, but provided ratio is 3",
            "resources.requests.memory, memory.guest, resources.limits.memory",
        ),
    ],
)
def test_refusal_names_fields_of_vm(message: str, fields: str) -> None:
    told = quota_errors.explain(message)
    assert told == f"{message}. Fields to change in the VM's spec.template.spec.domain: {fields}"


def test_unrelated_refusal_is_unchanged() -> None:
    assert quota_errors.explain("violates PodSecurity") == "violates PodSecurity"

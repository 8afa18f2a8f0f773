import json
from pathlib import Path
from typing import Any

import pytest

from bench import audit
from bench.api_calls import Window, analyse

CONTROLLER, HANDLER = "hyperlet-controller/0.1.0", "hyperlet-handler/0.1.0"


def event(agent: str, verb: str, resource: str, namespace: str = "bench", **more: Any) -> str:
    where: dict[str, str] = {"resource": resource, "namespace": namespace, "name": "a"}
    if "/" in resource:
        where["resource"], where["subresource"] = resource.split("/")
    return json.dumps(
        {"stage": "ResponseComplete", "verb": verb, "userAgent": agent, "objectRef": where,
         "responseStatus": {"code": 200}, **more}
    )  # fmt: skip


def test_only_hyperlets_components_are_parsed() -> None:
    lines = [
        event(CONTROLLER, "create", "pods"),
        event("kubelet/v1.36.3", "patch", "pods/status"),
        event("bench/1", "create", "virtualmachineinstances"),
        event(HANDLER, "create", "events"),
    ]
    assert [call.what for call in audit.parse(lines)] == [
        ("controller", "create", "pods"),
        ("handler", "create", "events"),
    ]


def test_hyperlet_service_account_counts_with_any_user_agent() -> None:
    user = {"username": "system:serviceaccount:hyperlet:hyperlet-handler"}
    (call,) = audit.parse([event("Python/3.13 aiohttp/3.10", "patch", "pods", user=user)])
    assert call.component == "handler"


def test_request_is_counted_once_for_all_stages() -> None:
    lines = [
        event(CONTROLLER, "create", "pods", stage="RequestReceived"),
        event(CONTROLLER, "create", "pods"),
        event(CONTROLLER, "watch", "pods", stage="ResponseStarted"),
        event(CONTROLLER, "watch", "pods"),
        '{"half": "writ',
    ]
    assert [call.kind for call in audit.parse(lines)] == [audit.COUNTED, audit.WATCH]


def test_background_calls_are_listed_separately() -> None:
    lines = [
        event(CONTROLLER, "update", "leases", "hyperlet"),
        event(HANDLER, "patch", "nodes", ""),
        event(CONTROLLER, "patch", "virtualmachines/status", "default"),
        event(CONTROLLER, "list", "virtualmachineinstances", ""),
        event(CONTROLLER, "patch", "virtualmachines/status"),
    ]
    kinds = [call.kind for call in audit.parse(lines)]
    assert kinds == [audit.LEASE, audit.HEARTBEAT, audit.ELSEWHERE, audit.COUNTED, audit.COUNTED]


def test_log_is_read_from_start_offset(tmp_path: Path) -> None:
    log = tmp_path / "audit.log"
    log.write_text(event(CONTROLLER, "create", "pods") + "\n")
    reader = audit.Log(log)
    with log.open("a") as stream:
        stream.write(event(HANDLER, "create", "events") + "\n")
    assert [call.resource for call in reader.calls()] == ["events"]


def test_rotated_log_raises_oserror(tmp_path: Path) -> None:
    log = tmp_path / "audit.log"
    log.write_text(event(CONTROLLER, "create", "pods") + "\n")
    reader = audit.Log(log)
    log.write_text("")
    with pytest.raises(OSError, match="measure again"):
        reader.calls()


def test_calls_are_divided_by_objects_and_rounds() -> None:
    lines = [event(CONTROLLER, "create", "pods")] * 5 + [event(HANDLER, "patch", "nodes", "")] * 9
    window = Window("VMI create → Running", 5, audit.parse(lines))
    result = analyse([window, window])
    (figure,) = result.figures
    assert (figure.value, figure.target, figure.verdict) == (1.0, 7.0, "ok")
    assert result.tables[0].rows == [["controller", "create", "pods", 1.0, None]]
    assert result.tables[-1].rows == [["heartbeat", "handler", "patch", "nodes", 18]]

"""The Pod Security Standard `restricted` as a checker, and pods that break each of its rules.

Written after https://kubernetes.io/docs/concepts/security/pod-security-standards/ as of Kubernetes 1.36, for Linux
pods without hostUsers: false. tests/e2e/test_pod_security.py has a real API server judge the same pods.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

Json = dict[str, Any]

VOLUMES = {
    "configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "image", "persistentVolumeClaim", "projected", "secret"
}  # fmt: skip
SELINUX_TYPES = {"", None, "container_t", "container_init_t", "container_kvm_t", "container_engine_t"}
SYSCTLS = {
    "kernel.shm_rmid_forced", "net.ipv4.ip_local_port_range", "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.tcp_syncookies", "net.ipv4.ping_group_range", "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time", "net.ipv4.tcp_fin_timeout", "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes", "net.ipv4.tcp_rmem", "net.ipv4.tcp_wmem",
}  # fmt: skip
APPARMOR = "container.apparmor.security.beta.kubernetes.io/"


def containers(spec: Json) -> Iterator[Json]:
    """Of every kind."""
    for field in ("initContainers", "containers", "ephemeralContainers"):
        yield from spec.get(field) or ()


def violations(pod: Json) -> set[str]:
    """The rules that a pod breaks, by name."""
    return {name for name, broken in RULES.items() if broken(pod)}


def _contexts(pod: Json) -> Iterator[Json]:
    """The security contexts of the pod and of its containers."""
    yield pod["spec"].get("securityContext") or {}
    for container in containers(pod["spec"]):
        yield container.get("securityContext") or {}


def _each(pod: Json, test: Callable[[Json], bool]) -> bool:
    return any(test(container.get("securityContext") or {}) for container in containers(pod["spec"]))


def _host_probe(pod: Json) -> bool:
    for container in containers(pod["spec"]):
        actions = [container.get(probe) or {} for probe in ("livenessProbe", "readinessProbe", "startupProbe")]
        actions += [(container.get("lifecycle") or {}).get(when) or {} for when in ("postStart", "preStop")]
        if any((action.get(kind) or {}).get("host") for action in actions for kind in ("httpGet", "tcpSocket")):
            return True
    return False


def _apparmor(pod: Json) -> bool:
    annotations = pod["metadata"].get("annotations") or {}
    found = [value for key, value in annotations.items() if key.startswith(APPARMOR)]
    if any(value not in ("", "runtime/default") and not value.startswith("localhost/") for value in found):
        return True
    return any((each.get("appArmorProfile") or {}).get("type") == "Unconfined" for each in _contexts(pod))


def _selinux(pod: Json) -> bool:
    options = [each.get("seLinuxOptions") or {} for each in _contexts(pod)]
    return any(each.get("type") not in SELINUX_TYPES or each.get("user") or each.get("role") for each in options)


def _capabilities(context: Json) -> bool:
    said = context.get("capabilities") or {}
    return "ALL" not in (said.get("drop") or []) or bool(set(said.get("add") or []) - {"NET_BIND_SERVICE"})


def _may_be_root(pod: Json) -> bool:
    of_pod = (pod["spec"].get("securityContext") or {}).get("runAsNonRoot")
    return _each(pod, lambda context: context.get("runAsNonRoot", of_pod) is not True)


def _seccomp(pod: Json) -> bool:
    of_pod = (pod["spec"].get("securityContext") or {}).get("seccompProfile")
    return _each(
        pod,
        lambda context: (
            ((context.get("seccompProfile") or of_pod) or {}).get("type") not in ("RuntimeDefault", "Localhost")
        ),
    )


RULES: dict[str, Callable[[Json], bool]] = {
    "hostProcess": lambda pod: any((each.get("windowsOptions") or {}).get("hostProcess") for each in _contexts(pod)),
    "hostNamespaces": lambda pod: any(pod["spec"].get(each) for each in ("hostNetwork", "hostPID", "hostIPC")),
    "privileged": lambda pod: _each(pod, lambda context: bool(context.get("privileged"))),
    "capabilities": lambda pod: _each(pod, _capabilities),
    "hostPorts": lambda pod: any(
        port.get("hostPort") for container in containers(pod["spec"]) for port in container.get("ports") or ()
    ),
    "hostProbes": _host_probe,
    "appArmor": _apparmor,
    "seLinux": _selinux,
    "procMount": lambda pod: _each(pod, lambda context: context.get("procMount") not in (None, "", "Default")),
    "seccomp": _seccomp,
    "sysctls": lambda pod: any(
        each["name"] not in SYSCTLS for each in (pod["spec"].get("securityContext") or {}).get("sysctls") or ()
    ),
    "volumes": lambda pod: any(
        not (set(volume) - {"name"} <= VOLUMES) for volume in pod["spec"].get("volumes") or ()
    ),
    "privilegeEscalation": lambda pod: _each(
        pod, lambda context: context.get("allowPrivilegeEscalation") is not False
    ),
    "runAsNonRoot": _may_be_root,
    "runAsUser": lambda pod: any(each.get("runAsUser") == 0 for each in _contexts(pod)),
}  # fmt: skip


def broken(pod: Json) -> Iterator[tuple[str, Json]]:
    """For every rule a pod that breaks it and no other, made from one that keeps to all. `hostProcess` is Windows'."""

    def changed(change: Callable[[Json, Json], object]) -> Json:
        copied = copy.deepcopy(pod)
        change(copied, next(containers(copied["spec"])))
        return copied

    def context(**values: Any) -> Json:
        return changed(lambda _pod, container: container["securityContext"].update(values))

    def of_pod(**values: Any) -> Json:
        return changed(lambda whole, _container: whole["spec"]["securityContext"].update(values))

    yield "hostNamespaces", changed(lambda whole, _: whole["spec"].update(hostPID=True))
    yield "capabilities", context(capabilities={"drop": ["ALL"], "add": ["CHOWN"]})
    yield "capabilities", context(capabilities={"drop": ["CHOWN"]})
    yield "hostPorts", changed(lambda _, each: each.update(ports=[{"containerPort": 80, "hostPort": 80}]))
    for action in ("httpGet", "tcpSocket"):
        for probe in ("livenessProbe", "readinessProbe"):
            named = {probe: {action: {"host": "192.0.2.1", "port": 80}}}
            yield "hostProbes", changed(lambda _, each, named=named: each.update(named))
    yield "appArmor", of_pod(appArmorProfile={"type": "Unconfined"})
    yield "seLinux", of_pod(seLinuxOptions={"type": "spc_t"})
    yield "seccomp", of_pod(seccompProfile={"type": "Unconfined"})
    yield "seccomp", changed(lambda whole, _: whole["spec"]["securityContext"].pop("seccompProfile"))
    yield "sysctls", of_pod(sysctls=[{"name": "kernel.msgmax", "value": "65536"}])
    yield (
        "volumes",
        changed(
            lambda whole, _: whole["spec"].setdefault("volumes", []).append({"name": "h", "hostPath": {"path": "/"}})
        ),
    )
    yield "privilegeEscalation", changed(lambda _, each: each["securityContext"].pop("allowPrivilegeEscalation"))
    yield "runAsNonRoot", changed(lambda whole, _: whole["spec"]["securityContext"].pop("runAsNonRoot"))
    yield "runAsUser", of_pod(runAsUser=0)

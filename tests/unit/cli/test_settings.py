"""Global flags in any position, Go's flag syntax, and kubeconfigs."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from cli.client import ApiClient, seconds_of
from cli.commands import like_cobra, program_name
from cli.problem import CliError
from cli.settings import CliSettings
from kit.kubeconfig import ConfigError, KubeconfigFlags, load
from tests.unit.cli.conftest import Hyperctl
from tests.unit.cli.published import SUB, Published
from tests.unit.cli.window import ROOT

START = f"{SUB}/virtualmachines/testvm/start"


def test_global_flags_may_stand_before_and_after_the_command(server: Published, hyperctl: Hyperctl) -> None:
    place = START.replace("/default/", "/other/")
    server.answers["PUT", place] = b""
    for words in (
        "-n other start testvm",
        "start -n=other testvm",
        "start testvm --namespace=other",
        "-nother start testvm",
    ):
        assert hyperctl(*words.split()).code == 0, words
    assert {request.path for request in server.requests} == {place}


def test_a_flag_of_the_command_hides_the_global_one(hyperctl: Hyperctl) -> None:
    result = hyperctl("create", "vm", "--name=x", "--user=guestuser")
    assert "user: guestuser" in result.out


def test_impersonation_is_sent(server: Published, hyperctl: Hyperctl) -> None:
    server.answers["PUT", START] = b""
    assert hyperctl("start", "testvm", "--as=jane", "--as-group=a", "--as-uid=7").code == 0
    headers = server.requests[0].headers
    assert (headers["Impersonate-User"], headers["Impersonate-Group"], headers["Impersonate-Uid"]) == ("jane", "a", "7")
    assert "--as-group" in hyperctl("start", "testvm", "--as-group=a").err


def test_a_token_flag_replaces_the_users(server: Published, hyperctl: Hyperctl) -> None:
    server.answers["PUT", START] = b""
    assert hyperctl("start", "testvm", "--token=bad").err.startswith(
        "error: cannot start VirtualMachine testvm: the API server rejected the credentials"
    )
    assert hyperctl("start", "testvm", "--token=good").code == 0


def test_unreachable_server_is_reported_in_one_line(hyperctl: Hyperctl) -> None:
    result = hyperctl("start", "testvm", "--server=http://127.0.0.1:1")
    assert result.code == 1
    assert (
        result.err.startswith("error: cannot reach the API server http://127.0.0.1:1") and result.err.count("\n") == 1
    )


def test_names_cannot_traverse_paths(server: Published, hyperctl: Hyperctl) -> None:
    assert hyperctl("start", "..").err == "error: '..' is not a valid name\n"
    hyperctl("start", "../../secrets/x")
    assert server.requests[0].raw == f"{SUB}/virtualmachines/..%2F..%2Fsecrets%2Fx/start"


@pytest.mark.parametrize(
    ("words", "read"),
    [
        (["--force=true", "x"], ["--force", "x"]),
        (["--force=false", "x"], ["x"]),
        (["-o=json"], ["-ojson"]),
        (["--name", "--force=false"], ["--name", "--force=false"]),
        (["--", "--force=false"], ["--", "--force=false"]),
        (["--name"], ["--name"]),
    ],
)
def test_flags_as_go_programs_take_them(words: list[str], read: list[str]) -> None:
    assert like_cobra(words, frozenset({"--force"}), frozenset({"--name"})) == read


def test_switch_accepts_only_true_or_false(hyperctl: Hyperctl) -> None:
    assert "--force must be true or false" in hyperctl("stop", "x", "--force=maybe").err


def test_program_name_follows_argv0() -> None:
    assert program_name("/usr/bin/kubectl-virt") == "kubectl virt"
    assert program_name("/usr/bin/hyperctl") == "hyperctl"


def test_unknown_arguments_are_reported_in_one_line(hyperctl: Hyperctl) -> None:
    for words in (["nonsense"], ["start"], ["start", "a", "b"], ["start", "--nonsense", "a"]):
        result = hyperctl(*words)
        assert result.code == 1 and result.err.startswith("error: ") and result.err.count("\n") == 1, words


def test_help_lists_every_command(hyperctl: Hyperctl) -> None:
    out = hyperctl().out
    assert all(word in out for word in ("console", "port-forward", "migrate-cancel", "vnc"))
    assert "--kubeconfig" in hyperctl("options").out


def test_every_command_loads_and_has_help(hyperctl: Hyperctl) -> None:
    from cli.app import COMMANDS

    for name in COMMANDS:
        result = hyperctl(name, "--help")
        assert result.code == 0 and result.out.startswith(f"Usage: hyperctl {name}"), name


def test_closed_stdout_prints_no_error() -> None:
    script = "import sys; from cli.app import run; sys.exit(run(['create', 'vm']))"
    with subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout and process.stderr
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 1


def test_settings_round_trip_as_arguments() -> None:
    settings = CliSettings(namespace="a b", impersonate_groups=("x", "y"), insecure=True)
    words = settings.words()
    assert words == ["--namespace=a b", "--as-group=x", "--as-group=y", "--insecure-skip-tls-verify"]


@pytest.mark.parametrize(("text", "seconds"), [("30", 30.0), ("2m", 120.0), ("0", None), ("500ms", 0.5)])
def test_request_timeout(text: str, seconds: float | None) -> None:
    assert seconds_of(text) == seconds


def test_invalid_request_timeout_is_refused() -> None:
    with pytest.raises(CliError, match="30s"):
        seconds_of("soon")


# ---- kubeconfigs


def config(path: Path, **parts: object) -> Path:
    path.write_text(json.dumps({"apiVersion": "v1", "kind": "Config", **parts}))
    return path


def context(name: str, cluster: str, user: str, namespace: str = "ns") -> dict[str, object]:
    return {"name": name, "context": {"cluster": cluster, "user": user, "namespace": namespace}}


def cluster(name: str, server: str, **more: object) -> dict[str, object]:
    return {"name": name, "cluster": {"server": server, **more}}


@pytest.fixture
def two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = config(
        tmp_path / "first",
        clusters=[cluster("a", "http://a")],
        contexts=[context("one", "a", "ua")],
        users=[{"name": "ua", "user": {"token": "ta"}}],
    )
    second = config(
        tmp_path / "second",
        clusters=[cluster("a", "http://hidden"), cluster("b", "http://b")],
        contexts=[context("two", "b", "ub", "nsb")],
        users=[{"name": "ub", "user": {"token": "tb"}}],
        **{"current-context": "two"},
    )
    monkeypatch.setenv("KUBECONFIG", f"{first}{os.pathsep}{tmp_path / 'missing'}{os.pathsep}{second}")


async def test_kubeconfig_files_are_merged(two: None) -> None:
    found = load(KubeconfigFlags())
    assert (found.server, found.namespace) == ("http://b", "nsb")
    assert await found.credentials.headers() == {"Authorization": "Bearer tb"}
    assert load(KubeconfigFlags(context="one")).server == "http://a"


async def test_flags_override_kubeconfig(two: None) -> None:
    found = load(KubeconfigFlags(context="one", cluster="b", user="ub", namespace="mine"))
    assert (found.server, found.namespace) == ("http://b", "mine")
    assert await found.credentials.headers() == {"Authorization": "Bearer tb"}
    assert load(KubeconfigFlags(server="http://c/")).server == "http://c"


def test_missing_kubeconfig_entries_are_reported(two: None) -> None:
    with pytest.raises(ConfigError, match="no context 'three'; it has: one, two"):
        load(KubeconfigFlags(context="three"))
    with pytest.raises(ConfigError, match="no cluster 'x'"):
        load(KubeconfigFlags(cluster="x"))
    with pytest.raises(ConfigError, match="no user 'x'"):
        load(KubeconfigFlags(user="x"))


@pytest.mark.parametrize("text", ["[]", "clusters: [1]", "{", "clusters: {a: b}"])
def test_invalid_kubeconfig_files_are_reported(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"config"):
        load(KubeconfigFlags(kubeconfig=str(path)))


def test_unsupported_kubeconfig_features_are_reported(tmp_path: Path) -> None:
    path = config(
        tmp_path / "config",
        clusters=[cluster("a", "http://a", **{"proxy-url": "http://proxy"})],
        contexts=[context("one", "a", "")],
        **{"current-context": "one"},
    )
    with pytest.raises(ConfigError, match="proxy-url"):
        load(KubeconfigFlags(kubeconfig=str(path)))


def test_without_any_kubeconfig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(ConfigError, match="no kubeconfig"):
        load(KubeconfigFlags())
    with pytest.raises(CliError, match="no kubeconfig"):
        ApiClient(CliSettings())


def plugin(folder: Path, body: str, api: str = "client.authentication.k8s.io/v1") -> Path:
    """A kubeconfig whose user has a credential plugin with this shell script."""
    script = folder / "plugin"
    script.write_text(f"#!/bin/sh\n{body}\n")
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    user = {"exec": {"apiVersion": api, "command": str(script), "env": [{"name": "EXTRA", "value": "from-env"}]}}
    return config(
        folder / "config",
        clusters=[cluster("a", "http://a")],
        contexts=[context("one", "a", "u")],
        users=[{"name": "u", "user": user}],
        **{"current-context": "one"},
    )


async def test_a_credential_plugin_gives_the_token_once(tmp_path: Path) -> None:
    log = tmp_path / "log"
    body = f"""echo "$KUBERNETES_EXEC_INFO" >> {log}
printf '{{"status":{{"token":"%s"}}}}' "$EXTRA" """
    credentials = load(KubeconfigFlags(kubeconfig=str(plugin(tmp_path, body)))).credentials
    assert await credentials.headers() == {"Authorization": "Bearer from-env"}
    assert await credentials.headers() == {"Authorization": "Bearer from-env"}
    (asked,) = [json.loads(line) for line in log.read_text().splitlines()]
    assert asked["kind"] == "ExecCredential"
    await credentials.headers(renew=True)
    assert len(log.read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("body", "words"),
    [("exit 3", "exit code 3"), ("echo nonsense", "no ExecCredential"), ("echo '{\"status\":{}}'", "no token")],
)
async def test_a_credential_plugin_that_fails(tmp_path: Path, body: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        await load(KubeconfigFlags(kubeconfig=str(plugin(tmp_path, body)))).credentials.headers()


async def test_a_credential_plugin_that_is_missing_or_too_old(tmp_path: Path) -> None:
    path = plugin(tmp_path, "exit 0", "client.authentication.k8s.io/v1alpha1")
    with pytest.raises(ConfigError, match="v1alpha1"):
        await load(KubeconfigFlags(kubeconfig=str(path))).credentials.headers()
    path = plugin(tmp_path, "exit 0")
    (tmp_path / "plugin").unlink()
    with pytest.raises(ConfigError, match="cannot run"):
        await load(KubeconfigFlags(kubeconfig=str(path))).credentials.headers()


def test_a_refused_token_is_renewed_once(server: Published, hyperctl: Hyperctl, tmp_path: Path) -> None:
    server.answers["PUT", START] = b""
    count = tmp_path / "count"
    body = f"""echo x >> {count}
if [ $(wc -l < {count}) = 1 ]; then token=old; else token=good; fi
printf '{{"status":{{"token":"%s"}}}}' $token """
    path = plugin(tmp_path, body)
    result = hyperctl(
        "start", "testvm", f"--kubeconfig={path}", f"--server=http://127.0.0.1:{server.port}", "-n=default"
    )
    assert result.code == 0, result.err
    assert [request.headers["Authorization"] for request in server.requests] == ["Bearer old", "Bearer good"]


def test_completion_prints_a_script_for_each_shell(hyperctl: Hyperctl) -> None:
    for shell in ("bash", "zsh", "fish"):
        assert "_HYPERCTL_COMPLETE" in hyperctl("completion", shell).out
    assert "bash, zsh or fish" in hyperctl("completion", "tcsh").err


def test_the_shell_completes_commands_flags_and_names(
    server: Published, hyperctl: Hyperctl, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = "/apis/kubevirt.io/v1/namespaces/default/virtualmachines"
    server.answers["GET", place] = {"items": [{"metadata": {"name": name}} for name in ("web-1", "web-2", "db")]}
    monkeypatch.setenv("_HYPERCTL_COMPLETE", "bash_complete")

    def complete(words: str) -> list[str]:
        monkeypatch.setenv("COMP_WORDS", words)
        monkeypatch.setenv("COMP_CWORD", str(words.count(" ")))
        return [line.partition(",")[2] for line in hyperctl().out.split()]

    assert complete("hyperctl sta") == ["start"]
    assert complete("hyperctl start --gr") == []
    assert complete("hyperctl stop --gr") == ["--grace-period"]
    assert complete("hyperctl start web") == ["web-1", "web-2"]
    server.answers.clear()
    assert complete("hyperctl start web") == []

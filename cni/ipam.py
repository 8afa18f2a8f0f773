"""Delegates IPAM to host-local, static, dhcp or any other IPAM plugin in CNI_PATH.

The plugin runs in the caller's mount namespace, the host's, so that CNI_PATH and the plugin's files are the runtime's.
Output and run time are limited. Source: CNI specification 1.1.0, section 4.
"""

import contextlib
import os
import selectors
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import msgspec

from cni import errors, spec
from cni.errors import CniError
from cni.invocation import Invocation, OwnNamespaces, identity
from kit import proc

SECONDS = 60
BY_INTERFACE = frozenset({"dhcp"})
"""Plugins that release an address through the container's interface, which must exist at DEL."""
_NEW = "1.1.0"
_NEW_VERBS = ("GC", "STATUS")
_OUTPUT = 1 << 20
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def add(kind: str, call: Invocation, version: str, own: OwnNamespaces) -> spec.CniResult:
    """Run ADD. Raises CniError: the plugin's own, or 102."""
    answer = run(kind, "ADD", call, own)
    if not isinstance(answer, dict):
        raise CniError(errors.DELEGATE, f"the IPAM plugin {kind} printed no result")
    found = spec.result(answer, version, errors.DELEGATE, f"what the IPAM plugin {kind} printed")
    if not found.ips:
        with contextlib.suppress(CniError):
            run(kind, "DEL", call, own)
        raise CniError(errors.DELEGATE, f"the IPAM plugin {kind} returned no address")
    return found


def run(kind: str, command: str, call: Invocation, own: OwnNamespaces) -> Any:
    """Run a command; returns its JSON, None if there is none or the plugin predates the command. Raises CniError."""
    answer = _run(kind, command, call, own, call.stdin)
    if _refuses_version(answer):
        # The plugin is older than the configuration's version: the previous version differs in nothing used here.
        answer = _run(kind, command, call, own, _older(call.stdin))
    code, parsed = answer
    if code == 0:
        return parsed
    if command in _NEW_VERBS and not _is_new(kind, call, own):
        return None
    if isinstance(parsed, dict) and isinstance(parsed.get("code"), int):
        raise CniError(parsed["code"], f"IPAM plugin {kind}: {parsed.get('msg')}", str(parsed.get("details") or ""))
    raise CniError(errors.DELEGATE, f"the IPAM plugin {kind} failed with exit code {code}", str(parsed)[:1000])


def _refuses_version(answer: tuple[int, Any]) -> bool:
    code, parsed = answer
    return code != 0 and isinstance(parsed, dict) and parsed.get("code") == errors.VERSION


def _is_new(kind: str, call: Invocation, own: OwnNamespaces) -> bool:
    """Whether the plugin supports GC and STATUS; assumed if it does not report its versions."""
    try:
        _, parsed = _run(kind, "VERSION", call, own, msgspec.json.encode({"cniVersion": _NEW}))
    except CniError:
        return True
    supported = parsed.get("supportedVersions") if isinstance(parsed, dict) else None
    return not isinstance(supported, list) or _NEW in supported


def _older(stdin: bytes) -> bytes:
    conf = msgspec.json.decode(stdin)
    if conf.get("cniVersion") == _NEW:
        conf["cniVersion"] = "1.0.0"
    return msgspec.json.encode(conf)


def _run(kind: str, command: str, call: Invocation, own: OwnNamespaces, stdin: bytes) -> tuple[int, Any]:
    environment = {key: value for key, value in call.environment.items() if key.startswith("CNI_")}
    environment |= {"CNI_COMMAND": command, "PATH": _PATH}

    def body() -> tuple[int, bytes, bytes]:
        # The child inherits this thread's root and mounts.
        place = f"/proc/{call.peer}/ns/mnt"
        if identity(place) != own.mount:
            with proc.closing(os.open(place, os.O_RDONLY | os.O_CLOEXEC)) as namespace:
                proc.enter_mounts(namespace)
        return _execute(_find(kind, call.path), environment, stdin)

    try:
        code, stdout, stderr = proc.isolated_now(body)
    except (OSError, subprocess.SubprocessError) as error:
        raise CniError(errors.DELEGATE, f"the IPAM plugin {kind} cannot be run: {error}") from None
    if code and not stdout.strip():
        return code, stderr.decode("utf-8", "replace")
    try:
        return code, msgspec.json.decode(stdout) if stdout.strip() else None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CniError(errors.DELEGATE, f"the IPAM plugin {kind} did not print JSON: {error}") from None


def _find(kind: str, path: tuple[str, ...]) -> str:
    for folder in path:
        candidate = f"{folder}/{kind}"
        if Path(candidate).is_file() and os.access(candidate, os.X_OK):
            return candidate
    raise CniError(
        errors.DELEGATE, f"the IPAM plugin {kind} is in none of the directories of CNI_PATH: {':'.join(path)[:500]}"
    )


def _execute(program: str, environment: dict[str, str], stdin: bytes) -> tuple[int, bytes, bytes]:
    process = subprocess.Popen(
        [program],
        env=environment,
        cwd="/",
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        stdout, stderr = _converse(process, stdin)
        return process.wait(5), stdout, stderr
    finally:
        if process.poll() is None:
            with contextlib.suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe:
                with contextlib.suppress(OSError):
                    pipe.close()


def _converse(process: subprocess.Popen[bytes], stdin: bytes) -> tuple[bytes, bytes]:
    assert process.stdin and process.stdout and process.stderr
    deadline = time.monotonic() + SECONDS
    left = memoryview(stdin)
    output = {process.stdout.fileno(): bytearray(), process.stderr.fileno(): bytearray()}
    os.set_blocking(process.stdin.fileno(), False)
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdin, selectors.EVENT_WRITE)
        for fd in output:
            selector.register(fd, selectors.EVENT_READ)
        while any(key.fileobj in output for key in selector.get_map().values()):
            if time.monotonic() > deadline:
                raise OSError(0, f"did not respond within {SECONDS} s")
            for key, _ in selector.select(max(0.01, deadline - time.monotonic())):
                if key.fileobj is process.stdin:
                    left = _feed(process, left)
                    if not left:
                        selector.unregister(process.stdin)
                        with contextlib.suppress(OSError):
                            process.stdin.close()
                elif not _drain(key.fd, output[key.fd]):
                    selector.unregister(key.fileobj)
    first, second = (bytes(each) for each in output.values())
    return first, second


def _feed(process: subprocess.Popen[bytes], left: memoryview) -> memoryview:
    assert process.stdin
    try:
        return left[os.write(process.stdin.fileno(), left[: 64 << 10]) :]
    except BlockingIOError:
        return left
    except OSError:  # the plugin does not read its input
        return left[:0]


def _drain(fd: int, into: bytearray) -> bool:
    data = os.read(fd, 64 << 10)
    into += data
    if len(into) > _OUTPUT:
        raise OSError(0, f"printed more than {_OUTPUT} bytes")
    return bool(data)

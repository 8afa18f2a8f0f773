"""Runs the short-lived child that turns a VMI into a domain (`python -m launcher.domain_builder.child`).

A separate process, because its imports (API structs, XML and ISO libraries) would cost the server more than 10 MiB for
the lifetime of the VM, and because it reads untrusted disk images. The first child is started early and waits, so that
the first Sync does not wait for its imports. It is forked before the server loads gRPC: common modules are loaded once,
and there are no threads yet.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from protos import launcher_pb2 as pb

BUILD_SECONDS = 60.0


class BuildError(Exception):
    """The VMI cannot be built. `code`: a gRPC status name, INVALID_ARGUMENT, NOT_FOUND or INTERNAL."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def question_of(request: pb.SyncRequest) -> dict[str, Any]:
    """The VMI and the handler's taps, as a request to `launcher.domain_builder.child`."""
    return {
        "vmi": request.vmi.decode(errors="replace"),
        "nics": [
            {"name": nic.name, "tap": nic.tap, "mac": nic.mac, "mtu": nic.mtu, "queues": nic.queues or 1}
            for nic in request.nics
        ],
    }


class ForkedChild:
    """A forked child with pipes as standard input and output.

    Implements the part of subprocess.Popen that a build needs.
    """

    def __init__(self, body: Callable[[], int]) -> None:
        """Fork. The child runs `body` and exits with its result. Only for processes without other threads."""
        request, self._request = os.pipe()
        self._answer, answer = os.pipe()
        self._pid = os.fork()
        if self._pid:
            os.close(request)
            os.close(answer)
            return
        status = 1
        try:
            os.close(self._request)
            os.close(self._answer)
            os.dup2(request, 0)
            os.dup2(answer, 1)
            status = body()
            sys.stdout.flush()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)

    def communicate(self, data: bytes, timeout: float) -> tuple[bytes, None]:
        """Send `data` and read until the child exits. Raises subprocess.TimeoutExpired."""
        deadline, left, parts = time.monotonic() + timeout, memoryview(data), list[bytes]()
        os.set_blocking(self._request, False)
        while True:
            patience = max(0.0, deadline - time.monotonic())
            readable, writable, _ = select.select([self._answer], [self._request] if left else [], [], patience)
            if not readable and not writable:
                raise subprocess.TimeoutExpired("launcher.domain_builder.child", timeout)
            if writable:
                try:
                    left = left[os.write(self._request, left) :]
                except BrokenPipeError:
                    left = left[:0]
                if not left:
                    os.close(self._request)
                    self._request = -1
            if readable:
                part = os.read(self._answer, 1 << 16)
                if not part:
                    return b"".join(parts), None
                parts.append(part)

    def kill(self) -> None:
        """Kill the child; `wait` must follow."""
        os.kill(self._pid, signal.SIGKILL)

    def wait(self) -> None:
        """Reap the child and close the pipes."""
        os.waitpid(self._pid, 0)
        for pipe in (self._request, self._answer):
            if pipe >= 0:
                os.close(pipe)


def _prepare() -> int:
    from launcher.domain_builder import child

    return child.main()


class DomainBuilder:
    """Keeps one child ready for the first build; later builds start their own."""

    def __init__(self) -> None:
        self._waiting: ForkedChild | None = None

    def warm(self) -> None:
        """Fork a child that waits for its request. Must be called before threads are started."""
        self._waiting = ForkedChild(_prepare)

    def discard(self) -> None:
        """Kill the waiting child."""
        if self._waiting:
            self._waiting.kill()
            self._waiting.wait()
            self._waiting = None

    def _start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-s", "-m", "launcher.domain_builder.child"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    async def build(self, request: dict[str, Any]) -> Any:
        """The response of `launcher.domain_builder.child` to `request`, which decides on its type. Raises BuildError.

        Types: `launcher.domain_builder.answers`.
        """
        child, self._waiting = self._waiting or self._start(), None
        answer = await asyncio.get_running_loop().run_in_executor(None, self._ask, child, json.dumps(request).encode())
        if error := answer.get("error"):
            raise BuildError(error["code"], error["message"])
        return answer

    def _ask(self, child: ForkedChild | subprocess.Popen[bytes], request: bytes) -> dict[str, Any]:
        try:
            output, _ = child.communicate(request, timeout=BUILD_SECONDS)
            answer = json.loads(output)
        except subprocess.TimeoutExpired:
            raise BuildError("INTERNAL", f"preparing the disks took more than {BUILD_SECONDS:g} s") from None
        except ValueError:
            raise BuildError("INTERNAL", "preparing the domain failed; the launcher's log has the reason") from None
        finally:
            with contextlib.suppress(OSError):
                child.kill()
            child.wait()
        return answer if isinstance(answer, dict) else {}

"""The short-lived child that turns a VMI into a domain (`python -m launcher.prepare`).

A child, because what it imports (the API's Structs, the XML and ISO libraries) would cost the server more than ten MiB
for as long as the VM lives, and because it reads disk images that nobody trusts. It is started early and waits, so
that the first Sync does not wait for its imports.
"""

import asyncio
import contextlib
import json
import subprocess
import sys
from typing import Any

BUILD_SECONDS = 60.0


class BuildError(Exception):
    """The VMI cannot be built. `code` is a gRPC status name: INVALID_ARGUMENT, NOT_FOUND or INTERNAL."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Builder:
    """Keeps one child ready until the first build; later builds start theirs."""

    def __init__(self) -> None:
        self._waiting: subprocess.Popen[bytes] | None = None

    def warm(self) -> None:
        """Starts a child that waits for its request."""
        self._waiting = self._start()

    def discard(self) -> None:
        """Ends the waiting child: nothing will be built."""
        if self._waiting:
            self._waiting.kill()
            self._waiting.wait()
            self._waiting = None

    def _start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-s", "-m", "launcher.prepare"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    async def build(self, request: dict[str, Any]) -> dict[str, Any]:
        """What `launcher.prepare` answers to `request`. Raises BuildError."""
        child, self._waiting = self._waiting or self._start(), None
        answer = await asyncio.get_running_loop().run_in_executor(None, self._ask, child, json.dumps(request).encode())
        if error := answer.get("error"):
            raise BuildError(error["code"], error["message"])
        return answer

    def _ask(self, child: subprocess.Popen[bytes], request: bytes) -> dict[str, Any]:
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

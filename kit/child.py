"""Runs a program that is not trusted to end or to keep quiet: its time and output are limited.

The child inherits the calling thread's namespaces, root and mounts.
"""

import contextlib
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass

OUTPUT_BYTES = 1 << 20
"""Maximum size of standard output, and of standard error."""
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_READ_BYTES = 64 << 10


@dataclass(frozen=True)
class ChildResult:
    """How a program ended. `trouble`: why it was killed; `code` is then the negative signal."""

    code: int
    stdout: bytes
    stderr: bytes
    trouble: str = ""


def run(program: str, environment: Mapping[str, str], stdin: bytes, seconds: float) -> ChildResult:
    """Run a program without arguments, in / and in a session of its own. Raises OSError if it cannot be started.

    After `seconds`, or too much output, its process group is killed.
    """
    feed = os.memfd_create("stdin", os.MFD_CLOEXEC)
    try:
        with open(feed, "wb", closefd=False) as file:
            file.write(stdin)
        os.lseek(feed, 0, os.SEEK_SET)
        process = subprocess.Popen(
            [os.fsencode(program)],
            stdin=feed,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={os.fsencode(key): os.fsencode(value) for key, value in environment.items()},
            cwd=b"/",
            start_new_session=True,
        )
    finally:
        os.close(feed)
    assert process.stdout and process.stderr
    with process.stdout as stdout, process.stderr as stderr:
        output = {stdout.fileno(): bytearray(), stderr.fileno(): bytearray()}
        trouble = _collect(process, output, time.monotonic() + seconds)
        if trouble:
            # Not reaped yet, so the PID was not reused.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        code = process.wait()
        said, complained = output.values()
    return ChildResult(code, bytes(said), bytes(complained), trouble.format(seconds))


def _collect(process: subprocess.Popen[bytes], output: dict[int, bytearray], deadline: float) -> str:
    """Read until the program exits. Returns why it must be killed (a format for the timeout), or an empty string."""
    late = "did not exit within {:g} s and was killed"
    with selectors.PollSelector() as selector:
        for fd in output:
            selector.register(fd, selectors.EVENT_READ)
        while selector.get_map():
            for key, _ in selector.select(max(0.0, deadline - time.monotonic())):
                chunk = os.read(key.fd, _READ_BYTES)
                if not chunk:
                    selector.unregister(key.fd)
                output[key.fd] += chunk
                if len(output[key.fd]) > OUTPUT_BYTES:
                    return f"printed more than {OUTPUT_BYTES >> 20} MiB and was killed"
            if time.monotonic() >= deadline:
                return late
    try:
        process.wait(max(0.1, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        return late
    return ""

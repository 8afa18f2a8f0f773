"""The domain builder's child: forked, one request, bounded waits."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[4]
HEAD = """
import os, signal, subprocess, sys, time
from launcher.domain_builder.process import ForkedChild

def say(text):
    sys.stdout.write(text)
    return 0

def echo():
    data = sys.stdin.buffer.read()
    sys.stdout.buffer.write(data[::-1])
    return 0

def hang():
    sys.stdin.buffer.read()
    time.sleep(600)
"""


def run(script: str) -> str:
    """Output of a script in its own process: pytest may have threads, and must not fork."""
    done = subprocess.run(
        [sys.executable, "-c", HEAD + script], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_request_and_response_may_exceed_the_pipe_size() -> None:
    script = """
data = os.urandom(1 << 20)
child = ForkedChild(echo)
answer, _ = child.communicate(data, timeout=30)
child.kill()
child.wait()
assert answer == data[::-1]
say("the same")
"""
    assert run(script) == "the same"


def test_hanging_child_times_out() -> None:
    script = """
child = ForkedChild(hang)
try:
    child.communicate(bytes(1 << 20), timeout=0.2)
except subprocess.TimeoutExpired:
    say("too late")
child.kill()
child.wait()
try:
    os.waitpid(-1, 0)
except ChildProcessError:
    say(", and gone")
"""
    assert run(script) == "too late, and gone"


def test_crashed_child_logs_to_stderr() -> None:
    script = """
def fail():
    raise LookupError("odd")

child = ForkedChild(fail)
os.dup2(os.open("/dev/null", os.O_WRONLY), 2)
say(repr(child.communicate(bytes(1 << 20), timeout=30)[0]))
child.kill()
child.wait()
"""
    assert run(script) == "b''"


def test_child_exits_with_its_parent() -> None:
    """Its standard input ends, since only the parent holds the write end."""
    script = """
def wait():
    sys.stdin.buffer.read()
    os.write(2, b"the end")
    return 0

child = ForkedChild(wait)
os._exit(0)
"""
    done = subprocess.run([sys.executable, "-c", HEAD + script], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stderr == "the end"

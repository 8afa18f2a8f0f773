"""The client in Python, for development: same as `client.c`, but twenty times slower.

Run `python -m cni.client cnv-bridge` with the CNI environment, or a script that does through a link of that name.
"""

import os
import socket
import sys
from pathlib import Path

from cni import errors, wire
from cni.version import answer as version

ANSWER_SECONDS = 90


def call(path: str, plugin: str, environment: dict[str, str], stdin: bytes) -> wire.WireAnswer:
    """Call the daemon at `path`. If it cannot be reached, the answer is CNI error 11."""
    if environment.get("CNI_COMMAND") == "VERSION":
        return wire.WireAnswer(0, version(stdin))
    request = wire.WireRequest(plugin, environment, stdin)
    place = environment.get("CNI_NETNS", "")
    if place.startswith("/"):
        try:
            request.netns = os.open(place, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        except OSError:
            request.netns = -1
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as connection:
            connection.settimeout(1)
            connection.connect(path)
            connection.settimeout(ANSWER_SECONDS)
            wire.send_request(connection, request)
            return wire.receive_answer(connection, ANSWER_SECONDS)
    except (OSError, wire.WireError) as error:
        return wire.WireAnswer(1, _away(str(error)))
    finally:
        request.close()


def _away(why: str) -> bytes:
    import json

    fault = errors.CniError(errors.LATER, "the daemon of cnv-bridge and cnv-tuning is down; try again later", why)
    return json.dumps(fault.fields("1.1.0")).encode() + b"\n"


def main() -> int:
    plugin = sys.argv[1] if len(sys.argv) > 1 else Path(sys.argv[0]).name
    environment = {key: value for key, value in os.environ.items() if key.startswith("CNI_")}
    stdin = sys.stdin.buffer.read(wire.INPUT_LIMIT + 1) if environment.get("CNI_COMMAND") else b""
    answer = call(os.environ.get("HYPERLET_CNI_SOCKET", wire.SOCKET), plugin, environment, stdin)
    sys.stdout.buffer.write(answer.stdout)
    sys.stderr.buffer.write(answer.stderr)
    return answer.code


if __name__ == "__main__":
    sys.exit(main())

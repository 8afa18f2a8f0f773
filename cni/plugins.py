"""Dispatches requests to plugins and commands, and turns exceptions into CNI errors."""

import errno
from collections.abc import Callable
from threading import Condition

import msgspec
import structlog

from cni import bridge, errors, invocation, tuning, version, wire
from cni.errors import CniError
from cni.host import HostResources
from cni.invocation import Invocation

log = structlog.get_logger("cni")

PLUGINS: dict[str, dict[str, Callable[[Invocation, HostResources], bytes]]] = {
    "cnv-bridge": {
        "ADD": bridge.add,
        "CHECK": bridge.check,
        "DEL": bridge.delete,
        "GC": bridge.collect,
        "STATUS": bridge.status,
    },
    "cnv-tuning": {
        "ADD": tuning.add,
        "CHECK": tuning.check,
        "DEL": tuning.delete,
        "GC": tuning.collect,
        "STATUS": tuning.status,
    },
}
# The first version of the specification with the command.
_SINCE = {"CHECK": "0.4.0", "GC": "1.1.0", "STATUS": "1.1.0"}
_ABOUT = "{}: CNI plugin of Hyperlet, version {}\nCNI protocol versions supported: {}\n"


class AttachmentLocks:
    """Serializes the calls for an attachment: DEL waits for an ADD that the runtime has given up on."""

    def __init__(self) -> None:
        self._condition = Condition()
        self._busy: set[tuple[str, str]] = set()

    def take(self, attachment: tuple[str, str], seconds: float) -> bool:
        """Wait for the attachment's lock; False on timeout."""
        with self._condition:
            if not self._condition.wait_for(lambda: attachment not in self._busy, seconds):
                return False
            self._busy.add(attachment)
            return True

    def leave(self, attachment: tuple[str, str]) -> None:
        """Release the lock."""
        with self._condition:
            self._busy.discard(attachment)
            self._condition.notify_all()


_LOCK_SECONDS = 70
attachment_locks = AttachmentLocks()


def serve(
    request: wire.WireRequest, peer: int, resources: HostResources, waiting: Callable[[], bool]
) -> wire.WireAnswer:
    """Execute a request. Never raises.

    `waiting` returns whether the caller is still connected. An ADD whose caller has disconnected is not started, or
    rolled back: the DEL that follows may have overtaken it.
    """
    command = request.environment.get("CNI_COMMAND", "")
    plugin = request.plugin
    if plugin not in PLUGINS:
        known = " or ".join(PLUGINS)
        return _refused(request, CniError(errors.ENVIRONMENT, f"the plugin was called as {plugin[:40]!r}, not {known}"))
    if not command:
        from api.version import VERSION

        text = _ABOUT.format(plugin, VERSION, ", ".join(version.SUPPORTED))
        return wire.WireAnswer(0, b"", text.encode())
    if command == "VERSION":
        return wire.WireAnswer(0, version.answer(request.stdin))
    try:
        return _served(invocation.check(request, peer, resources.own), resources, waiting)
    except Exception as error:
        return _refused(request, _fault(error))


def _served(call: Invocation, resources: HostResources, waiting: Callable[[], bool]) -> wire.WireAnswer:
    verb = PLUGINS[call.plugin][call.command]
    _check_version(call)
    if not call.container:
        return wire.WireAnswer(0, verb(call, resources))
    if not attachment_locks.take(call.attachment, _LOCK_SECONDS):
        raise CniError(errors.LATER, "another call for the same interface is in progress; try again later")
    try:
        if call.command == "ADD" and not waiting():
            raise CniError(errors.LATER, "the caller disconnected before ADD started")
        output = verb(call, resources)
        if call.command == "ADD" and not waiting():
            PLUGINS[call.plugin]["DEL"](call, resources)
            raise CniError(errors.LATER, "the caller disconnected before ADD completed; it was rolled back")
        return wire.WireAnswer(0, output)
    finally:
        attachment_locks.leave(call.attachment)


def _check_version(call: Invocation) -> None:
    since = _SINCE.get(call.command)
    if since is None:
        return
    given = _version(call.stdin)
    if given in version.SUPPORTED and not version.at_least(given, since):
        raise CniError(errors.VERSION, f"{call.command} requires CNI {since}; the network configuration has {given}")


def _version(stdin: bytes) -> str:
    try:
        given = msgspec.json.decode(stdin)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ""
    found = given.get("cniVersion") if isinstance(given, dict) else None
    return found if isinstance(found, str) else ""


def _fault(error: Exception) -> CniError:
    if isinstance(error, CniError):
        return error
    if isinstance(error, OSError):
        code = (
            errors.LATER if error.errno in (errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.ENOMEM) else errors.KERNEL
        )
        return CniError(code, f"the kernel refused: {error.strerror or error}", repr(error))
    log.error("unhandled exception in call", exc_info=error)
    return CniError(errors.INTERNAL, f"internal error: {type(error).__name__}: {error}")


def _refused(request: wire.WireRequest, error: CniError) -> wire.WireAnswer:
    known = _version(request.stdin)
    fields = error.fields(known if known in version.SUPPORTED else version.LATEST)
    environment = request.environment
    log.info(
        "call failed",
        plugin=request.plugin[:40],
        command=environment.get("CNI_COMMAND", "")[:20],
        container=environment.get("CNI_CONTAINERID", "")[:80],
        interface=environment.get("CNI_IFNAME", "")[:20],
        code=error.code,
        why=error.message[:500],
    )
    return wire.WireAnswer(1, msgspec.json.encode(fields) + b"\n")


def refusal(error: CniError) -> wire.WireAnswer:
    """The answer to a caller whose request is not processed."""
    return wire.WireAnswer(1, msgspec.json.encode(error.fields(version.LATEST)) + b"\n")

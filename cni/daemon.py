"""The CNI daemon: a Unix socket in a directory owned by root, and worker threads that each handle one call at a time.

A few threads suffice for short calls. When all are busy and none completes its call for a moment, another thread is
started, so that calls that wait for an IPAM plugin do not block others.
"""

import contextlib
import os
import select
import socket
import stat
import struct
import threading
import time
from pathlib import Path

import structlog

from cni import errors, invocation, plugins, wire
from cni.errors import CniError
from cni.host import HostResources

log = structlog.get_logger("cni")

WORKERS = 3
_MOST = 128
_PATIENCE = 0.03  # seconds with all threads busy and no call completed before another thread is started
_IDLE_SECONDS = 20  # before an idle thread beyond WORKERS exits
_REQUEST_SECONDS = 5
_REFUSED_SECONDS = 1  # for the request of an untrusted caller, which is discarded
_STOP_SECONDS = 10


def listen(path: str) -> socket.socket:
    """The listening socket, in a directory only root may enter. Raises OSError, also for a directory not of root."""
    folder = Path(path).parent
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != 0:
        raise OSError(0, f"{folder} is not a directory owned by root")
    folder.chmod(0o700)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    draft = Path(f"{path}.{os.getpid()}")
    draft.unlink(missing_ok=True)
    listener.bind(str(draft))
    draft.chmod(0o600)
    listener.listen(4096)
    # Renamed atomically: there is always a socket.
    draft.rename(path)
    return listener


class Daemon:
    """Serves calls until `stop`."""

    def __init__(self, listener: socket.socket, resources: HostResources) -> None:
        self._listener = listener
        self._resources = resources
        self._lock = threading.Lock()
        self._pressed = threading.Event()
        self._stopping = False
        self._workers = 0
        self._idle = 0
        self._done = 0
        self._wake, self.waker = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        # A kernel timeout: accept() wakes one thread per connection, poll() would wake all.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", _IDLE_SECONDS, 0))

    def run(self) -> None:
        """Serve; returns after `stop` when running calls have completed, or after ten seconds."""
        for _ in range(WORKERS):
            self._start()
        threading.Thread(target=self._start_worker, name="steward", daemon=True).start()
        # Signals wake the main thread by this descriptor (signal.set_wakeup_fd), whichever thread receives them.
        while not self._stopping:
            select.select([self._wake], [], [])
        self._pressed.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        deadline = time.monotonic() + _STOP_SECONDS
        while self._workers and time.monotonic() < deadline:
            time.sleep(0.02)

    def stop(self) -> None:
        """Stop accepting calls; running ones are answered. May be called from a signal handler."""
        self._stopping = True
        with contextlib.suppress(BlockingIOError):
            os.write(self.waker, b"x")

    def _start_worker(self) -> None:
        while not self._stopping:
            self._pressed.wait()
            done = self._done
            time.sleep(_PATIENCE)
            with self._lock:
                short = self._idle == 0 and self._done == done and self._workers < _MOST and not self._stopping
                if self._idle:
                    self._pressed.clear()
            if short and self._has_backlog():
                self._start()

    def _has_backlog(self) -> bool:
        return bool(select.select([self._listener], [], [], 0)[0])

    def _start(self) -> None:
        with self._lock:
            self._workers += 1
        threading.Thread(target=self._work, name="worker", daemon=True).start()

    def _work(self) -> None:
        while (connection := self._accept()) is not None:
            with connection:
                self._call(connection)
            self._done += 1

    def _accept(self) -> socket.socket | None:
        """The next connection; None to end this thread."""
        with self._lock:
            self._idle += 1
        try:
            while not self._stopping:
                try:
                    return self._listener.accept()[0]
                except BlockingIOError:  # no connection for _IDLE_SECONDS
                    if self._surplus():
                        return None
                except OSError as error:
                    if not self._stopping:
                        log.error("cannot accept connections, retrying", error=str(error))
                        time.sleep(0.2)
            with self._lock:
                self._workers -= 1
            return None
        finally:
            with self._lock:
                self._idle -= 1
                if self._idle == 0:
                    self._pressed.set()

    def _surplus(self) -> bool:
        """Whether the calling thread is surplus; if so, it is no longer counted."""
        with self._lock:
            if self._workers <= WORKERS:
                return False
            self._workers -= 1
            return True

    def _call(self, connection: socket.socket) -> None:
        try:
            answer = self._answer(connection)
            wire.send_answer(connection, answer)
        except (OSError, wire.WireError) as error:
            log.info("connection to the client lost", error=str(error))
        except Exception as error:
            log.error("unhandled exception in call", exc_info=error)

    def _answer(self, connection: socket.socket) -> wire.WireAnswer:
        try:
            peer = invocation.trusted_peer(connection, self._resources.own)
        except invocation.Untrusted as error:
            log.warning("refused a caller that is not root on the host", caller=str(error))
            # Closing with unread data would reset the connection before the caller reads the answer.
            with contextlib.suppress(OSError, wire.WireError):
                wire.receive_request(connection, time.monotonic() + _REFUSED_SECONDS).close()
            return plugins.refusal(CniError(errors.ENVIRONMENT, "only root on the host may call this plugin"))
        request = wire.receive_request(connection, time.monotonic() + _REQUEST_SECONDS)
        try:
            return plugins.serve(request, peer, self._resources, lambda: not _is_closed(connection))
        finally:
            request.close()


def _is_closed(connection: socket.socket) -> bool:
    poll = select.poll()
    poll.register(connection, select.POLLRDHUP)
    return bool(poll.poll(0))

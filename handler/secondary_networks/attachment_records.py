"""Records of the networks that this handler attached pods to, on the node's disk.

A record is written before the CNI ADD, so that DEL runs even if plugin, handler or node fails in between. One file per
pod, mode 0600: `/var/lib/hyperlet/attachments/<pod uid>.json`.
"""

import contextlib
import os
import pathlib
import re
from collections.abc import Iterator

import msgspec

from api.k8s.meta import Json, ObjectMeta, Struct
from api.k8s.objects import Pod
from api.network_attachments import Selection
from handler.secondary_networks.cni_config import CniNetwork
from kit import log

FOLDER = pathlib.Path("/var/lib/hyperlet/attachments")
_UID = re.compile(r"[0-9A-Za-z][0-9A-Za-z\-]{0,63}")
_log = log.logger(component="attachments")


class Attachment(Struct):
    """One network of a pod. `result`: that of the whole plugin chain; None until its ADD has completed."""

    selection: Selection
    name: str
    version: str
    plugins: list[Json]
    result: Json | None = None

    @property
    def network(self) -> CniNetwork:
        """The configuration used for ADD: the definition may have changed or been deleted by the time of DEL."""
        return CniNetwork(f"network {self.selection.network}", self.name, self.version, tuple(self.plugins))


class AttachmentRecord(Struct):
    """The networks that one pod is attached to."""

    namespace: str
    name: str
    uid: str
    joined: list[Attachment] = []

    def of(self, interface: str) -> Attachment | None:
        """The network of an interface."""
        return next((each for each in self.joined if each.selection.interface == interface), None)

    def having(self, joined: Attachment) -> "AttachmentRecord":
        """The record with a network added or replaced."""
        return self.without(joined.selection.interface, joined)

    def without(self, interface: str, *instead: Attachment) -> "AttachmentRecord":
        """The record without the network of an interface."""
        others = [each for each in self.joined if each.selection.interface != interface]
        return msgspec.structs.replace(self, joined=[*others, *instead])

    @property
    def pod(self) -> Pod:
        """The pod, as far as Events need it: it may have been deleted."""
        return Pod(kind="Pod", metadata=ObjectMeta(namespace=self.namespace, name=self.name, uid=self.uid))


class AttachmentRecords:
    """All records of this node, in memory and on disk. Methods raise OSError."""

    def __init__(self, folder: pathlib.Path = FOLDER) -> None:
        self._folder = folder
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)
        self._known: dict[str, AttachmentRecord] = {}
        for path in sorted(folder.glob("*.json")):
            self._load(path)

    def _load(self, path: pathlib.Path) -> None:
        try:
            record = msgspec.json.decode(path.read_bytes(), type=AttachmentRecord)
        except (OSError, msgspec.DecodeError, UnicodeError) as error:
            _log.error(
                "Cannot read a pod's attachment record: its networks will not be detached",
                file=str(path),
                why=str(error),
            )
            return
        if record.uid == path.stem:
            self._known[record.uid] = record

    def __iter__(self) -> Iterator[str]:
        return iter(tuple(self._known))

    def get(self, uid: str) -> AttachmentRecord | None:
        """The record of a pod."""
        return self._known.get(uid)

    def keep(self, record: AttachmentRecord) -> None:
        """Write a record durably (fsync); a record without networks is deleted."""
        if not _UID.fullmatch(record.uid):
            raise OSError(0, f"{record.uid[:80]!r} is not the UID of a pod")
        path = self._folder / f"{record.uid}.json"
        if record.joined:
            draft = path.with_suffix(".draft")
            with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as stream:
                stream.write(msgspec.json.encode(record))
                stream.flush()
                os.fsync(stream.fileno())
            draft.rename(path)
            self._known[record.uid] = record
        else:
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
            self._known.pop(record.uid, None)
        self._settle()

    def _settle(self) -> None:
        folder = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

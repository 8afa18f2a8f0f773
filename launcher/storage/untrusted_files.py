"""Files inside directories that somebody else filled: images, volumes.

Paths are resolved inside their root as a container would: `/` and `..` at the root lead to the root, and so does every
symbolic link. What comes out is a path without links, safe to hand to QEMU as long as nobody changes the tree:
container images are read-only, and in a volume the last step is never a link.
"""

import os
import stat
from pathlib import Path

_LINKS = 40
"""As the kernel allows."""


class Missing(Exception):
    """A file is not where it should be, or cannot be used. The message names the volume."""


def resolve(root: Path, path: str) -> Path:
    """The place of `path` below `root`. Raises FileNotFoundError, NotADirectoryError, OSError (a loop of links)."""
    todo = [part for part in reversed(path.split("/")) if part]
    done: list[str] = []
    links = 0
    while todo:
        part = todo.pop()
        if part == ".":
            continue
        if part == "..":
            del done[-1:]
            continue
        here = root.joinpath(*done, part)
        mode = here.lstat().st_mode
        if not stat.S_ISLNK(mode):
            if todo and not stat.S_ISDIR(mode):
                raise NotADirectoryError(f"{part} is not a directory")
            done.append(part)
            continue
        links += 1
        if links > _LINKS:
            raise OSError("too many symbolic links")
        target = here.readlink().as_posix()
        if target.startswith("/"):
            done.clear()
        todo += [step for step in reversed(target.split("/")) if step]
    return root.joinpath(*done)


def open_regular(path: Path, flags: int = os.O_RDONLY) -> int:
    """A descriptor of a regular file. Raises OSError; ValueError for anything else, which is never waited for."""
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ValueError("is not a regular file")
    return descriptor


def read_bounded(path: Path, limit: int) -> bytes:
    """A regular file's content. Raises OSError; ValueError if it is no regular file or has more than `limit` bytes."""
    with os.fdopen(open_regular(path), "rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise ValueError(f"has more than {limit} bytes")
    return data

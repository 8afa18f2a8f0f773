"""Files in untrusted directories: images, volumes.

Paths are resolved within their root as in a container: `/`, `..` at the root and symbolic links cannot leave it. The
result is a path without links, safe to pass to QEMU while the tree does not change: container images are read-only,
and in a volume the last component is never a link.
"""

import os
import stat
from pathlib import Path

_LINKS = 40
"""The kernel's limit."""


class Missing(Exception):
    """A file is missing or unusable. The message names the volume."""


def resolve(root: Path, path: str) -> Path:
    """The resolved `path` below `root`. Raises FileNotFoundError, NotADirectoryError, OSError (a loop of links)."""
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
    """A descriptor of a regular file. Raises OSError; ValueError for any other type, without blocking."""
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ValueError("is not a regular file")
    return descriptor


def read_bounded(path: Path, limit: int) -> bytes:
    """A regular file's content. Raises OSError; ValueError for other types, and for more than `limit` bytes."""
    with os.fdopen(open_regular(path), "rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise ValueError(f"has more than {limit} bytes")
    return data

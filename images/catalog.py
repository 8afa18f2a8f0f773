"""All images, and building them."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from images.guest_images import GUEST_IMAGES, GuestImage
from images.paths import ARCHIVES, CACHE
from images.plan import ImagePlan
from images.roles import ROLES, Role

IMAGES: tuple[Role | GuestImage, ...] = (*ROLES, *GUEST_IMAGES)


class UnknownImage(LookupError):
    """There is no image of that name. The message lists the existing ones."""


@dataclass(frozen=True)
class Built:
    """`seconds` is the build time; near 0 for an existing image."""

    plan: ImagePlan
    seconds: float


def choose(names: Iterable[str]) -> list[Role | GuestImage]:
    """The images of these names, all if there are none. `guests` stands for every guest image.

    Raises:
        UnknownImage: for an unknown name.
    """
    wanted = list(names)
    known = {image.role: image for image in IMAGES}
    for name in wanted:
        if name not in known and name != "guests":
            raise UnknownImage(f"no image {name!r}; there are {', '.join(known)}, and guests for all of these")
    return [i for i in IMAGES if not wanted or i.role in wanted or ("guests" in wanted and isinstance(i, GuestImage))]


@contextmanager
def _alone() -> Iterator[None]:
    """Prevents two concurrent builds."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "images.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def build(images: Iterable[Role | GuestImage]) -> Iterator[Built]:
    """Build what is missing, one after the other; yields each image when it is done."""
    with _alone():
        for image in images:
            started = time.monotonic()
            plan = image.plan()
            if not plan.archive.exists():
                image.make(plan)
            _forget_others(plan)
            yield Built(plan, time.monotonic() - started)


def _forget_others(plan: ImagePlan) -> None:
    """Delete archives of earlier sources: the builder's layers are what makes the next build fast."""
    for path in ARCHIVES.glob(f"{plan.role}-*.tar"):
        if path != plan.archive and len(path.stem) == len(plan.archive.stem):
            path.unlink()


def listing() -> dict[str, ImagePlan]:
    """Every image of the present sources, built or not."""
    return {image.role: image.plan() for image in IMAGES}

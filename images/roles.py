"""The images of the Containerfile: the sources of each, which decide when it is rebuilt."""

from __future__ import annotations

from dataclasses import dataclass

from images import base
from images.builder import ImageBuilder
from images.keys import tree_key
from images.paths import ARCHIVES, ROOT
from images.plan import ImagePlan

PREFIX = "hyperlet.local"
SHARED = ("Containerfile", ".containerignore", "images/constraints.txt", "api", "kit", "protos")


@dataclass(frozen=True)
class Role:
    """One target of the Containerfile. `sources` are the files and folders that only this target copies."""

    role: str
    sources: tuple[str, ...]

    def tag(self) -> str:
        """A hash of all our sources in the image. Newer Debian packages alone cause no rebuild."""
        return tree_key(ROOT, (*SHARED, *self.sources), base.reference())

    def plan(self) -> ImagePlan:
        """The plan for the present sources."""
        tag = self.tag()
        return ImagePlan(self.role, f"{PREFIX}/{self.role}:{tag}", ARCHIVES / f"{self.role}-{tag}.tar")

    def make(self, plan: ImagePlan) -> None:
        """Build the image and write its archive (needs root, buildah, and mmdebstrap the first time)."""
        builder = ImageBuilder()
        builder.build(self.role, base.build(builder), plan.reference)
        builder.export(plan.reference, plan.archive)


ROLES = (
    Role("launcher", ("images/requirements-launcher.txt", "images/bake_capabilities.py", "launcher")),
    Role("node", ("images/requirements-node.txt", "handler", "cni")),
    Role("cluster", ("images/requirements-cluster.txt", "controller", "gateway")),
)
"""A folder that a target copies must be listed here too, or a change in it causes no rebuild; a test compares them."""

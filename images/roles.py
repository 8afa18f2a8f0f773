"""The images of the Containerfile: what goes into each, and so when it must be built again."""

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
    """One target of the Containerfile. `sources` are the files and folders that only this target has."""

    role: str
    sources: tuple[str, ...]

    def tag(self) -> str:
        """A hash of all our sources that go in. Debian's newer packages alone make no new image."""
        return tree_key(ROOT, (*SHARED, *self.sources), base.reference())

    def plan(self) -> ImagePlan:
        """What the sources as they are at this moment stand for."""
        tag = self.tag()
        return ImagePlan(self.role, f"{PREFIX}/{self.role}:{tag}", ARCHIVES / f"{self.role}-{tag}.tar")

    def make(self, plan: ImagePlan) -> None:
        """Build the image and write its archive (needs root, buildah, and once mmdebstrap)."""
        builder = ImageBuilder()
        builder.build(self.role, base.build(builder), plan.reference)
        builder.export(plan.reference, plan.archive)


ROLES = (
    Role("launcher", ("images/requirements-launcher.txt", "images/bake_capabilities.py", "launcher")),
    Role("node", ("images/requirements-node.txt", "handler", "cni")),
    Role("cluster", ("images/requirements-cluster.txt", "controller", "gateway")),
)
"""A folder that a target copies must be named here too, or a change in it makes no new image; a test compares them."""

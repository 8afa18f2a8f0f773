"""The Containerfile compared with `images.roles`."""

from __future__ import annotations

import re

import pytest

from images import catalog
from images.paths import ROOT
from images.roles import ROLES, SHARED, Role

STAGES = re.split(r"^FROM ", (ROOT / "Containerfile").read_text(), flags=re.MULTILINE)[1:]


def stage(name: str) -> str:
    (found,) = [text for text in STAGES if text.split("\n", 1)[0].endswith(f" AS {name}")]
    return found


def with_parents(name: str) -> str:
    """A stage and all stages it uses, by FROM or by COPY --from."""
    text = stage(name)
    names = {s.split("\n", 1)[0].split()[-1] for s in STAGES}
    parents = [text.split()[0], *re.findall(r"COPY --from=(\S+)", text)]
    return text + "".join(with_parents(parent) for parent in parents if parent in names)


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.role)
def test_every_copied_file_is_part_of_the_tag(role: Role) -> None:
    copied: set[str] = set()
    for line in re.findall(r"^COPY (?!--from)(.+)$", with_parents(role.role), re.MULTILINE):
        copied.update(line.split()[:-1])
    others = {f"images/requirements-{other.role}.txt" for other in ROLES if other != role}
    assert copied - others <= {*SHARED, *role.sources}


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.role)
def test_sources_of_the_tag_exist(role: Role) -> None:
    assert [name for name in (*SHARED, *role.sources) if not (ROOT / name).exists()] == []


def test_only_the_handler_runs_as_root() -> None:
    users = {role.role: re.findall(r"^USER (\S+)$", stage(role.role), re.MULTILINE) for role in ROLES}
    assert users == {"launcher": ["107:107"], "node": [], "cluster": ["1001:1001"]}


def test_launcher_contains_only_its_imports() -> None:
    assert not re.search(r"COPY (handler|controller|gateway|cni) ", stage("launcher"))


def test_references_are_local_and_never_latest() -> None:
    for plan in catalog.listing().values():
        assert plan.reference.startswith("hyperlet.local/")
        assert not plan.reference.endswith(":latest")


def test_unknown_image_is_refused_by_name() -> None:
    with pytest.raises(catalog.UnknownImage, match="no image 'launchr'; there are launcher"):
        catalog.choose(["launchr"])


def test_guests_stands_for_all_guest_images() -> None:
    assert {image.role for image in catalog.choose(["guests", "node"])} == {image.role for image in catalog.IMAGES} - {
        "launcher",
        "cluster",
    }

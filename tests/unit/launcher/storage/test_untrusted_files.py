import os
import pathlib

import pytest

from launcher.storage.untrusted_files import open_regular, read_bounded, resolve


@pytest.fixture
def root(tmp_path: pathlib.Path) -> pathlib.Path:
    (tmp_path / "secret").write_text("host")
    root = tmp_path / "image"
    (root / "disk/sub").mkdir(parents=True)
    (root / "disk/guest.img").write_bytes(b"guest")
    (root / "secret").write_text("image")
    return root


@pytest.mark.parametrize(
    "path", ["disk/guest.img", "/disk/guest.img", "disk/./sub/../guest.img", "../../disk/guest.img"]
)
def test_paths_stay_inside(root: pathlib.Path, path: str) -> None:
    assert resolve(root, path) == root / "disk/guest.img"


@pytest.mark.parametrize("target", ["../../secret", "/secret", "../../../../../../secret", "sub/../../../secret"])
def test_links_stay_inside(root: pathlib.Path, target: str) -> None:
    (root / "disk/link").symlink_to(target)
    assert resolve(root, "disk/link") == root / "secret"
    assert read_bounded(resolve(root, "disk/link"), 100) == b"image"


def test_links_to_directories(root: pathlib.Path) -> None:
    (root / "away").symlink_to("/disk/sub")
    (root / "disk/sub/up").symlink_to("../guest.img")
    assert resolve(root, "away/up") == root / "disk/guest.img"


def test_loops_and_files_as_directories(root: pathlib.Path) -> None:
    (root / "a").symlink_to("b")
    (root / "b").symlink_to("a")
    with pytest.raises(OSError, match="too many"):
        resolve(root, "a")
    with pytest.raises(NotADirectoryError):
        resolve(root, "disk/guest.img/x")
    with pytest.raises(FileNotFoundError):
        resolve(root, "disk/none")


def test_only_regular_files_are_opened(root: pathlib.Path) -> None:
    os.mkfifo(root / "fifo")
    with pytest.raises(ValueError, match="not a regular file"):
        open_regular(root / "fifo")  # and does not wait for a writer
    (root / "link").symlink_to("secret")
    with pytest.raises(OSError, match="symbolic links"):
        open_regular(root / "link")
    with pytest.raises(ValueError, match="more than 2 bytes"):
        read_bounded(root / "secret", 2)

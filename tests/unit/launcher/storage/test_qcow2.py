import io
import json
import pathlib
import shutil
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.storage import qcow2

needs_qemu_img = pytest.mark.skipif(not shutil.which("qemu-img"), reason="needs qemu-img")


def qemu_img(*arguments: str | pathlib.Path) -> str:
    return subprocess.run(["qemu-img", *arguments], check=True, capture_output=True, text=True).stdout


@needs_qemu_img
@pytest.mark.parametrize("size", [512, 1 << 20, (5 << 40) + 512])
def test_overlay_equals_qemu_img_output(size: int, tmp_path: pathlib.Path) -> None:
    backing, overlay = tmp_path / "backing.img", tmp_path / "overlay.qcow2"
    backing.write_bytes(b"")
    with backing.open("r+b") as file:
        file.write(b"content" if size > 512 else b"c")
        file.truncate(size)
    qcow2.create_overlay(overlay, backing, "raw", size)
    info = json.loads(qemu_img("info", "--output=json", overlay))
    assert (info["format"], info["virtual-size"]) == ("qcow2", size)
    assert (info["backing-filename"], info["backing-filename-format"]) == (str(backing), "raw")
    qemu_img("check", overlay)
    if size < 1 << 30:
        assert qemu_img("compare", overlay, backing) == "Images are identical.\n"


@needs_qemu_img
@pytest.mark.parametrize("options", ["compat=1.1", "compat=0.10", "cluster_size=512,compat=1.1"])
def test_the_size_of_real_images(options: str, tmp_path: pathlib.Path) -> None:
    image = tmp_path / "image.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-o", options, image, "3G")
    with image.open("rb") as file:
        assert qcow2.virtual_size(file) == 3 << 30


@needs_qemu_img
def test_images_with_external_files_are_rejected(tmp_path: pathlib.Path) -> None:
    (tmp_path / "base.img").write_bytes(bytes(1 << 20))
    qemu_img("create", "-q", "-f", "qcow2", "-b", tmp_path / "base.img", "-F", "raw", tmp_path / "child.qcow2")
    with (tmp_path / "child.qcow2").open("rb") as file, pytest.raises(qcow2.NoImage, match="has a backing file"):
        qcow2.virtual_size(file)
    qemu_img("create", "-q", "-f", "qcow2", "-o", f"data_file={tmp_path}/data", tmp_path / "outside.qcow2", "1M")
    with (tmp_path / "outside.qcow2").open("rb") as file, pytest.raises(qcow2.NoImage, match="external data file"):
        qcow2.virtual_size(file)


@given(st.binary(max_size=200))
def test_malformed_header_raises_no_image(data: bytes) -> None:
    with pytest.raises(qcow2.NoImage):
        qcow2.virtual_size(io.BytesIO(qcow2.MAGIC + data))

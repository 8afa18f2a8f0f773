import os
import pathlib
import subprocess
import sys

from launcher.hypervisor import daemon
from launcher.paths import Paths
from launcher.supervisor.child_process import ChildProcess, describe


def test_image_cache_gets_this_nodes_timestamps(tmp_path: pathlib.Path) -> None:
    source, target = tmp_path / "baked", tmp_path / "cache"
    (source / "qemu/cache").mkdir(parents=True)
    text = "<qemuCaps>\n  <qemuctime>1</qemuctime>\n  <selfctime>2</selfctime>\n  <selfvers>3</selfvers>\n</qemuCaps>\n"
    (source / "qemu/cache/x.xml").write_text(text)
    daemon.install_cache(str(source), str(target), {"qemuctime": 100, "selfctime": 200, "absent": 5})
    changed = (target / "qemu/cache/x.xml").read_text()
    assert changed == text.replace(">1<", ">100<").replace(">2<", ">200<")


def test_only_children_of_the_root_are_changed(tmp_path: pathlib.Path) -> None:
    source, target = tmp_path / "baked", tmp_path / "cache"
    source.mkdir()
    text = (
        "<?xml version='1.0'?>\n<!-- <selfctime>1</selfctime> --><qemuCaps>\n"
        "<cpu><selfctime>2</selfctime></cpu><selfctime >3</selfctime>\n<qemuctime/><arch>\u00e4</arch></qemuCaps>\n"
    )
    (source / "x.xml").write_text(text)
    daemon.install_cache(str(source), str(target), {"qemuctime": 100, "selfctime": 200})
    assert (target / "x.xml").read_text() == text.replace(">3<", ">200<")


def test_damaged_image_cache_is_left_out(tmp_path: pathlib.Path) -> None:
    source, target = tmp_path / "baked", tmp_path / "cache"
    source.mkdir()
    (source / "bad.xml").write_text("<qemuCaps><qemuctime>1</qemuctime>")
    (source / "good.xml").write_text("<qemuCaps><qemuctime>1</qemuctime></qemuCaps>")
    daemon.install_cache(str(source), str(target), {"qemuctime": 100})
    assert [(path.name, path.read_text()) for path in target.iterdir()] == [
        ("good.xml", "<qemuCaps><qemuctime>100</qemuctime></qemuCaps>")
    ]


def test_supervisor_does_not_keep_what_the_cache_needs(tmp_path: pathlib.Path) -> None:
    """prepare() reads XML in a child: the supervisor's memory counts for every VM."""
    source = tmp_path / "baked"
    source.mkdir()
    (source / "x.xml").write_text("<qemuCaps><qemuctime>1</qemuctime></qemuCaps>")
    script = """
import sys
from launcher.hypervisor import daemon
from launcher.paths import Paths

daemon._changes = lambda _: {"qemuctime": 7}
daemon.prepare("/usr/sbin/libvirtd", Paths(sys.argv[1]))
print("pyexpat" in sys.modules, "xml" in sys.modules)
"""
    environment = {**os.environ, "HYPERLET_LIBVIRT_CACHE": str(source)}
    command = [sys.executable, "-c", script, str(tmp_path / "root")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"], done.stderr
    found = Paths(str(tmp_path / "root")).libvirt_cache
    assert "<qemuctime>7</qemuctime>" in pathlib.Path(found, "x.xml").read_text()


def test_missing_image_cache_is_ignored(tmp_path: pathlib.Path) -> None:
    daemon.install_cache(str(tmp_path / "none"), str(tmp_path / "cache"), {})
    assert not (tmp_path / "cache").exists()


def test_libvirtd_comes_before_virtqemud(tmp_path: pathlib.Path) -> None:
    for name in ("virtqemud", "libvirtd"):
        (tmp_path / name).touch(mode=0o755)
        assert daemon.find((str(tmp_path),)) == f"{tmp_path}/{name}"
    assert Paths().libvirt_socket("libvirtd").endswith("/libvirt-sock")
    assert Paths().libvirt_socket("virtqemud").endswith("/virtqemud-sock")


def test_restart_delay_increases() -> None:
    child = ChildProcess("x", ["/bin/true"], {})
    pauses = [child.ended(0, 0.0) for _ in range(9)]
    assert pauses[0] == 0 and pauses == sorted(pauses) and pauses[-1] == pauses[-2] == 5
    assert child.ended(0, 1000.0) == 0  # it had run long


def test_describe_wait_status() -> None:
    assert describe(9) == "signal 9 (SIGKILL)"
    assert describe(1 << 8) == "exit status 1"


def test_output_file_is_truncated(tmp_path: pathlib.Path) -> None:
    child = ChildProcess("x", ["/bin/true"], {}, str(tmp_path / "log"))
    child.trim()
    (tmp_path / "log").write_bytes(b"x" * 100 + b"the last words\n")
    child.trim()
    assert child.last_words().endswith("the last words")
    (tmp_path / "log").write_bytes(b"x" * (2 << 20))
    child.trim()
    assert (tmp_path / "log").stat().st_size == 0

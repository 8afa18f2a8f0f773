"""Images in a launcher's mount namespace, from a real containerd. A process in a mount namespace of its own, with a
root directory of its own, stands in for the launcher's container."""

import asyncio
import contextlib
import pathlib
import shutil
import subprocess
import tempfile
import time

import pytest

from api.errors import ImagePullFailed
from handler.storage import containerd, images, mounts
from handler.storage.images import WantedImage
from kit import proc
from tests.node.containerdlab import Daemon, Image, Registry

pytestmark = pytest.mark.node

POD = "0b9e4c1e-6c58-4ad1-9a0a-3a1b2c3d4e5f"
OTHER = "11111111-2222-3333-4444-555555555555"


@pytest.fixture(scope="module")
def daemon():
    directory = pathlib.Path(tempfile.mkdtemp(prefix="hl-test-containerd-"))
    running = Daemon(directory)
    running.ctr(
        "images",
        "import",
        str(Image({"disk/one.img": b"first"}).archive(directory / "one.tar", "registry.test/one:1")),
    )
    layers = [{"disk/many.img": b"old"}, {"other": b"x"}, {"disk/many.img": b"new", "disk/more": b"y"}]
    running.ctr("images", "import", str(Image(*layers).archive(directory / "many.tar", "registry.test/many:2")))
    yield running
    running.close()
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
async def client(daemon):
    found = containerd.Containerd(daemon.socket)
    yield found
    for key in await found.leases():
        await found.drop(key)
    await found.close()


class Container:
    """A process with a mount namespace and a tmpfs as root, as a container has."""

    def __init__(self) -> None:
        script = (
            "mount -t tmpfs hltest /mnt && cd /mnt && mkdir -p images proc bin lib lib64 usr old && "
            "for d in bin lib lib64 usr; do [ -e /$d ] && mount --rbind /$d $d; done; "
            "mount -t proc proc proc && pivot_root . old && umount -l /old && echo up && exec /bin/sleep 600"
        )
        self._process = subprocess.Popen(
            ["unshare", "--mount", "--propagation", "private", "sh", "-ec", script], stdout=subprocess.PIPE
        )
        assert self._process.stdout and self._process.stdout.readline() == b"up\n"
        self.process = proc.Process(self._process.pid)

    def run(self, command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["nsenter", "--mount", f"--target={self.process.pid}", "sh", "-c", command],
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self.process.close()


@pytest.fixture
def container():
    made = Container()
    yield made
    made.close()


@pytest.fixture
def provider(client):
    return images.ImageMounts(client, host_mounts="/proc/self/ns/mnt")


def wanted(image: str, volume: str = "disk0", policy: str | None = None, secret: str | None = None) -> WantedImage:
    return WantedImage(volume, image, policy, secret)


async def test_single_layer_image_is_mounted(provider, container):
    assert await provider.provide(container.process, POD, [wanted("registry.test/one:1")]) == ["disk0"]
    assert container.run("cat /images/disk0/disk/one.img").stdout == "first"


async def test_two_multi_layer_images_are_mounted_together(provider, container):
    both = [wanted("registry.test/many:2"), wanted("registry.test/one:1", images.KERNEL_BOOT)]
    assert await provider.provide(container.process, POD, both) == ["disk0", "kernel-boot"]
    assert container.run("cat /images/disk0/disk/many.img; ls /images/disk0").stdout == "newdisk\nother\n"
    assert container.run("cat /images/kernel-boot/disk/one.img").stdout == "first"


@pytest.mark.parametrize("image", ["registry.test/one:1", "registry.test/many:2"])
async def test_mount_is_restricted_and_invisible_to_host(provider, container, image):
    before = pathlib.Path("/proc/self/mountinfo").read_text()
    await provider.provide(container.process, POD, [wanted(image)])
    assert pathlib.Path("/proc/self/mountinfo").read_text() == before
    line = next(line for line in container.process.read("mountinfo").decode().splitlines() if " /images/disk0 " in line)
    assert {"ro", "nosuid", "nodev", "noexec"} <= set(line.split()[5].split(","))
    assert "Read-only" in container.run("touch /images/disk0/x").stderr


async def test_repeated_provide_changes_nothing(provider, container, client):
    await provider.provide(container.process, POD, [wanted("registry.test/one:1")])
    assert await provider.provide(container.process, POD, [wanted("registry.test/one:1")]) == []
    assert container.process.read("mountinfo").decode().count(" /images/disk0 ") == 1
    # Another handler, after a crash between the view and the mount, takes the same view.
    container.run("umount /images/disk0")
    fresh = images.ImageMounts(client, host_mounts="/proc/self/ns/mnt")
    assert await fresh.provide(container.process, POD, [wanted("registry.test/one:1")]) == ["disk0"]


async def test_layers_are_mounted_by_mount_on_older_kernels(client, container):
    chain = await client.top_snapshot("registry.test/many:2")
    view = await client.view(images.key_of(POD, "old"), chain, POD)
    layers = (
        next(option for option in view[0].options if option.startswith("lowerdir="))
        .removeprefix("lowerdir=")
        .split(":")
    )

    def work() -> None:
        with proc.closing(container.process.namespace("mnt")) as theirs:
            proc.unshare(proc.CLONE_FS)
            with proc.closing(mounts._overlaid_at_once(layers)) as tree:
                proc.setns(theirs, proc.CLONE_NEWNS)
                mounts.place(tree, "images", "old")

    before = pathlib.Path("/proc/self/mountinfo").read_text()
    await proc.isolated(work)
    assert container.run("cat /images/old/disk/many.img").stdout == "new"
    assert pathlib.Path("/proc/self/mountinfo").read_text() == before


async def test_mounted_image_survives_removal_and_garbage_collection(provider, container, daemon, tmp_path):
    daemon.ctr(
        "images", "import", str(Image({"disk/gone": b"still here"}).archive(tmp_path / "a.tar", "registry.test/gone:1"))
    )
    await provider.provide(container.process, POD, [wanted("registry.test/gone:1")])
    daemon.ctr("images", "rm", "--sync", "registry.test/gone:1")
    container.run("echo 3 > /proc/sys/vm/drop_caches")
    assert container.run("cat /images/disk0/disk/gone").stdout == "still here"


async def test_views_are_removed_with_pod(provider, container, client, daemon):
    await provider.provide(container.process, POD, [wanted("registry.test/one:1")])
    await client.view(images.key_of(OTHER, "left-by-a-crash"), await client.top_snapshot("registry.test/one:1"), OTHER)
    assert await provider.sweep({POD}) == [images.key_of(OTHER, "left-by-a-crash")]
    assert images.key_of(POD, "disk0") in daemon.ctr("snapshots", "ls")
    await provider.forget(POD)
    assert "hyperlet" not in daemon.ctr("snapshots", "ls") + daemon.ctr("leases", "ls")
    await provider.forget(POD)


@pytest.mark.parametrize(
    "trap", ["ln -s /usr /images/disk0", "rmdir /images; ln -s /usr /images", "touch /images/disk0"]
)
async def test_links_and_files_at_mount_point_are_refused(provider, container, trap):
    assert container.run(trap).returncode == 0
    with pytest.raises(ImagePullFailed):
        await provider.provide(container.process, POD, [wanted("registry.test/one:1")])
    assert " /usr " not in [
        f" {line.split()[4]} " for line in container.process.read("mountinfo").decode().splitlines() if "noexec" in line
    ]


async def test_directory_not_owned_by_root_is_refused(provider, container):
    container.run("chown 107 /images")
    with pytest.raises(ImagePullFailed, match="not owned by root"):
        await provider.provide(container.process, POD, [wanted("registry.test/one:1")])


async def test_handler_mount_namespace_is_refused(provider):
    ours = await asyncio.create_subprocess_exec("sleep", "60")
    try:
        with proc.Process(ours.pid) as process, pytest.raises(ImagePullFailed):
            await provider.provide(process, POD, [wanted("registry.test/one:1")])
        assert not pathlib.Path("/images/disk0").exists()
    finally:
        ours.kill()
        await ours.wait()


async def test_missing_image_with_never_or_secret_is_refused(provider, container):
    with pytest.raises(containerd.ImageMissing, match=r"registry.test/none:1 is not on the node"):
        await provider.provide(container.process, POD, [wanted("registry.test/none:1", policy="Never")])
    with pytest.raises(ImagePullFailed, match="imagePullSecret mine"):
        await provider.provide(container.process, POD, [wanted("registry.test/none:1", secret="mine")])


@contextlib.asynccontextmanager
async def registry():
    served = Registry()
    await served.start()
    try:
        yield served
    finally:
        await served.close()


async def test_pull_follows_policy(provider, container):
    async with registry() as served:
        served.images["pulled"] = Image({"disk/p": b"pulled"})
        image = f"{served.host}/pulled:1"
        await provider.provide(container.process, POD, [wanted(image)])
        assert container.run("cat /images/disk0/disk/p").stdout == "pulled"
        count = served.pulls
        await provider.provide(container.process, POD, [wanted(image, "again")])
        assert served.pulls == count
        served.images["pulled"] = Image({"disk/p": b"newer"})
        await provider.provide(container.process, POD, [wanted(image, "always", "Always")])
        assert container.run("cat /images/always/disk/p").stdout == "newer"


async def test_failed_pull_backs_off_with_message(provider, container):
    async with registry() as served:
        image = f"{served.host}/none:1"
        with pytest.raises(containerd.PullRefused, match="not found") as first:
            await provider.provide(container.process, POD, [wanted(image)])
        asked = served.requests
        with pytest.raises(containerd.PullRefused, match="not found") as second:
            await provider.provide(container.process, POD, [wanted(image)])
        assert served.requests == asked
        assert 0 < second.value.again_in <= first.value.again_in <= 5


async def test_provider_without_socket_names_component(container, provider):
    without = images.ImageMounts(None, host_mounts="/proc/self/ns/mnt")
    with pytest.raises(
        ImagePullFailed, match=r"volume disk0: image registry.test/one:1 .*components/containerd-socket"
    ):
        await without.provide(container.process, POD, [wanted("registry.test/one:1")])
    # An image that is already mounted, as by the kubelet, needs no socket.
    await provider.provide(container.process, POD, [wanted("registry.test/one:1")])
    assert await without.provide(container.process, POD, [wanted("registry.test/one:1")]) == []
    await without.forget(POD)
    assert await without.sweep([]) == []


async def test_unreachable_containerd_is_reported(container):
    client = containerd.Containerd("/nonexistent/containerd.sock")
    provider = images.ImageMounts(client, host_mounts="/proc/self/ns/mnt")
    began = time.monotonic()
    with pytest.raises(ImagePullFailed, match=r"/nonexistent/containerd\.sock"):
        await provider.provide(container.process, POD, [wanted("registry.test/one:1")])
    assert time.monotonic() - began < 30
    await client.close()

"""Validation of a launcher's responses about its guest, like that of its reports (`handler.launchers.reports`)."""

from handler.launchers.reports import text
from protos import launcher_pb2 as pb
from protos import limits

_OS_FIELDS = ("name", "id", "version", "version_id", "pretty_name", "kernel_release", "kernel_version", "machine")
_PNG = b"\x89PNG\r\n\x1a\n"


class BadAnswer(ValueError):
    """The launcher violated the protocol."""


def guest_info(info: pb.GuestInfo) -> pb.GuestInfo:
    """The guest agent's information, bounded."""
    return pb.GuestInfo(
        agent_version=text(info.agent_version),
        hostname=text(info.hostname),
        timezone=text(info.timezone),
        os=pb.OsInfo(**{name: text(getattr(info.os, name)) for name in _OS_FIELDS}),
        interfaces=[
            pb.GuestInterface(
                name=text(item.name),
                mac=text(item.mac, 32),
                addresses=[text(a, limits.ADDRESS_BYTES) for a in item.addresses[: limits.ADDRESSES]],
            )
            for item in info.interfaces[: limits.INTERFACES]
        ],
    )


def users(reply: pb.UsersReply) -> pb.UsersReply:
    """Logged-in users, bounded."""
    return pb.UsersReply(
        users=[
            pb.GuestUser(name=text(user.name), domain=text(user.domain), login_time=user.login_time)
            for user in reply.users[: limits.USERS]
        ]
    )


def filesystems(reply: pb.FilesystemsReply) -> pb.FilesystemsReply:
    """Mounted file systems, bounded."""
    return pb.FilesystemsReply(
        filesystems=[
            pb.GuestFilesystem(
                name=text(item.name),
                mount_point=text(item.mount_point),
                type=text(item.type),
                used_bytes=item.used_bytes,
                total_bytes=item.total_bytes,
                disks=[
                    pb.GuestDisk(serial=text(disk.serial), bus=text(disk.bus))
                    for disk in item.disks[: limits.FILESYSTEM_DISKS]
                ],
            )
            for item in reply.filesystems[: limits.FILESYSTEMS]
        ]
    )


def screenshot(reply: pb.ScreenshotReply) -> pb.ScreenshotReply:
    """A PNG. Raises BadAnswer for anything else."""
    if not reply.png.startswith(_PNG) or len(reply.png) > limits.REPLY_BYTES:
        raise BadAnswer("the launcher's screenshot is not a PNG or is too large")
    return reply


def console_output(message: pb.ConsoleOutput | None) -> pb.ConsoleOutput:
    """A chunk of the serial console: data unchanged, the notice sanitized. Raises BadAnswer."""
    if message is None or len(message.data) > limits.CHUNK_BYTES:
        raise BadAnswer("the launcher sent an invalid console message")
    return pb.ConsoleOutput(data=message.data, notice=text(message.notice))


def chunk(message: pb.Chunk | None) -> pb.Chunk:
    """A chunk of a VNC connection. Raises BadAnswer."""
    if message is None or len(message.data) > limits.CHUNK_BYTES:
        raise BadAnswer("the launcher sent an invalid VNC message")
    return message

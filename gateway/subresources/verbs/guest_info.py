"""Information from guest agents, as KubeVirt kinds.

All values come from an untrusted guest. Launcher and handler limit their size; here they are plain text.
"""

from api.k8s.meta import Json
from protos import launcher_pb2 as pb

_API = {"apiVersion": "kubevirt.io/v1"}


def guest_agent_info(
    info: pb.GuestInfo, users: pb.UsersReply | None, filesystems: pb.FilesystemsReply | None, frozen: str | None
) -> Json:
    """VirtualMachineInstanceGuestAgentInfo, without unavailable fields."""
    system = info.os
    about = {
        "name": system.name,
        "id": system.id,
        "version": system.version,
        "versionId": system.version_id,
        "prettyName": system.pretty_name,
        "kernelRelease": system.kernel_release,
        "kernelVersion": system.kernel_version,
        "machine": system.machine,
    }
    found: Json = {
        "guestAgentVersion": info.agent_version,
        "hostname": info.hostname,
        "os": _reported(about),
        "timezone": info.timezone,
        "userList": [_user(each) for each in users.users] if users else None,
        "fsInfo": {"disks": [_filesystem(each) for each in filesystems.filesystems]} if filesystems else None,
        "fsFreezeStatus": frozen,
    }
    # KubeVirt's type has no omitempty for these two: they are always present.
    return {
        "kind": "VirtualMachineInstanceGuestAgentInfo",
        **_API,
        "os": {},
        "fsInfo": {"disks": []},
        **_reported(found),
    }


def user_list(reply: pb.UsersReply) -> Json:
    """VirtualMachineInstanceGuestOSUserList."""
    items = [_user(each) for each in reply.users]
    return {"kind": "VirtualMachineInstanceGuestOSUserList", **_API, "metadata": {}, "items": items}


def filesystem_list(reply: pb.FilesystemsReply) -> Json:
    """VirtualMachineInstanceFileSystemList."""
    items = [_filesystem(each) for each in reply.filesystems]
    return {"kind": "VirtualMachineInstanceFileSystemList", **_API, "metadata": {}, "items": items}


def _user(user: pb.GuestUser) -> Json:
    return {"userName": user.name, **_reported({"domain": user.domain, "loginTime": user.login_time})}


def _filesystem(system: pb.GuestFilesystem) -> Json:
    return {
        "diskName": system.name,
        "mountPoint": system.mount_point,
        "fileSystemType": system.type,
        "usedBytes": system.used_bytes,
        "totalBytes": system.total_bytes,
        "disk": [{"busType": disk.bus, **_reported({"serial": disk.serial})} for disk in system.disks],
    }


def _reported(fields: Json) -> Json:
    """Drops empty fields."""
    return {key: value for key, value in fields.items() if value}

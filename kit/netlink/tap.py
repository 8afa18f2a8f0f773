"""Tap devices, and offloads of devices, by ioctl: what netlink does not offer.

Sources: include/uapi/linux/{if_tun,ethtool}.h.
"""

import ctypes
import fcntl
import os
import socket
import struct

_TUNSETIFF, _TUNSETPERSIST, _TUNSETOWNER, _TUNSETGROUP = 0x400454CA, 0x400454CB, 0x400454CC, 0x400454CE
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR, _IFF_MULTI_QUEUE = 0x0002, 0x1000, 0x4000, 0x0100
_SIOCETHTOOL, _ETHTOOL_GTXCSUM, _ETHTOOL_STXCSUM = 0x8946, 0x16, 0x17


def add_tap(name: str, uid: int, gid: int, multi_queue: bool) -> None:
    """Creates a persistent tap device with virtio-net headers, owned by `uid`. Raises OSError (EBUSY: in use)."""
    flags = _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR | (_IFF_MULTI_QUEUE if multi_queue else 0)
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
        # The kernel uses 32 bits, Python passes a signed number, and a user of a user namespace may be above 2^31.
        fcntl.ioctl(fd, _TUNSETOWNER, ctypes.c_int32(uid).value)
        fcntl.ioctl(fd, _TUNSETGROUP, ctypes.c_int32(gid).value)
        fcntl.ioctl(fd, _TUNSETPERSIST, 1)
    finally:
        os.close(fd)


def leaves_checksums(name: str, wanted: bool | None = None) -> bool:
    """Whether TX checksum offload is enabled on the device; `wanted` sets it first.

    Old DHCP clients drop packets with offloaded checksums, which a virtual device never fills in.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as control:
        if wanted is not None:
            _ethtool(control, name, _ETHTOOL_STXCSUM, int(wanted))
        return bool(_ethtool(control, name, _ETHTOOL_GTXCSUM, 0))


def _ethtool(control: socket.socket, name: str, command: int, value: int) -> int:
    payload = (ctypes.c_uint32 * 2)(command, value)  # struct ethtool_value
    fcntl.ioctl(control, _SIOCETHTOOL, struct.pack("16sP16x", name.encode(), ctypes.addressof(payload)))
    return int(payload[1])

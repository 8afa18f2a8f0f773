"""Releasing program pages."""

from __future__ import annotations

import subprocess

from cluster import memory

MAPS = """\
00400000-02000000 r-xp 00000000 fe:00 1234 /csi-attacher
02000000-04000000 r--p 01c00000 fe:00 1234 /csi-attacher
04000000-04100000 rw-p 03c00000 fe:00 1234 /csi-attacher
c000000000-c000800000 rw-p 00000000 00:00 0
7f0000000000-7f0000021000 r--p 00000000 fe:00 99 /usr/lib/libc.so.6
7ffd00000000-7ffd00002000 r-xp 00000000 00:00 0 [vdso]
"""


def test_only_read_only_file_mappings_are_listed() -> None:
    assert list(memory.program_pieces(MAPS, "csi-attacher")) == [(0x400000, 0x1C00000), (0x2000000, 0x2000000)]


def test_process_survives_page_out() -> None:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert memory.page_out(process.pid) > 0
        told, _ = process.communicate("still here", timeout=60)
        assert told == "still here"
    assert memory.page_out(process.pid) == 0, "it has ended"

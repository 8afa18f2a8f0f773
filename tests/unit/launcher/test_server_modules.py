"""Modules that the launcher's server must not import: each would cost every VM memory."""

import subprocess
import sys

HEAVY = (
    "api", "msgspec", "pycdlib", "xml.dom", "xml.etree", "xml.sax", "launcher.domain", "launcher.domain_builder.child",
    "_ssl", "_hashlib", "google.protobuf.internal.decoder", "google.protobuf.text_format",
)  # fmt: skip

LIGHT = {"api", "api.text"}
"""A docstring and two functions."""


def test_server_does_not_import_the_builders_modules() -> None:
    script = """
import sys
from launcher.__main__ import leave_out

leave_out()
import launcher.server
from protos import launcher_pb2 as pb

# What is left out of protobuf is not missed.
report = pb.Report(nics=[pb.NicInfo(name="default")])
assert pb.Report.FromString(report.SerializeToString()) == report and "default" in str(report)
print("\\n".join(name for name, module in sys.modules.items() if module is not None))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split()) - LIGHT
    assert "launcher.hotplug.nic_hotplug" in loaded
    assert not [name for name in loaded if name in HEAVY or name.startswith(tuple(f"{each}." for each in HEAVY))]

"""Generates the Python beside each .proto, here and in cluster/csi: `python -m protos.generate`.

Run it after every change of a .proto and commit the result: images and users need no compiler.
"""

import os
import pathlib
import re
import sys

import grpc_tools
from grpc_tools import protoc

HERE = pathlib.Path(__file__).parent
PACKAGES = {"protos": (HERE, "only_async"), "cluster.csi": (HERE.parent / "cluster" / "csi", "only_sync")}
"""The packages with a .proto: their folders, and which of gRPC's two APIs they use (an option of mypy-protobuf)."""


def main() -> int:
    """Compiles every .proto; returns protoc's exit status."""
    # protoc looks for its mypy plugin on PATH; it is installed beside this interpreter.
    os.environ["PATH"] = f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"
    return next(filter(None, (generate(package, *each) for package, each in PACKAGES.items())), 0)


def generate(package: str, folder: pathlib.Path, api: str) -> int:
    """Compiles every .proto of one folder; returns protoc's exit status."""
    # The well-known types (google/protobuf/*.proto) lie beside the compiler.
    known = pathlib.Path(grpc_tools.__file__).parent / "_proto"
    for source in sorted(folder.glob("*.proto")):
        status = protoc.main(
            [
                "protoc",
                f"-I{folder}",
                f"-I{known}",
                f"--python_out={folder}",
                f"--grpc_python_out={folder}",
                f"--mypy_out={folder}",
                f"--mypy_grpc_out={api},generate_concrete_servicer_stubs:{folder}",
                str(source),
            ]
        )
        if status:
            return int(status)
    for generated in (*folder.glob("*_pb2*.py"), *folder.glob("*_pb2*.pyi")):
        # protoc writes top-level imports; the modules live in this package.
        text = generated.read_text()
        text = re.sub(r"^import (\w+_pb2) as", rf"from {package} import \1 as", text, flags=re.M)
        generated.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Generates the Python beside each .proto: `python -m protos.generate`.

Run it after every change of a .proto and commit the result: images and users need no compiler.
"""

import os
import pathlib
import re
import sys

from grpc_tools import protoc

HERE = pathlib.Path(__file__).parent


def main() -> int:
    """Compiles every .proto of this folder; returns protoc's exit status."""
    # protoc looks for its mypy plugin on PATH; it is installed beside this interpreter.
    os.environ["PATH"] = f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"
    for source in sorted(HERE.glob("*.proto")):
        status = protoc.main(
            [
                "protoc",
                f"-I{HERE}",
                f"--python_out={HERE}",
                f"--grpc_python_out={HERE}",
                f"--mypy_out={HERE}",
                str(source),
            ]
        )
        if status:
            return int(status)
    for generated in (*HERE.glob("*_pb2*.py"), *HERE.glob("*_pb2.pyi")):
        # protoc writes top-level imports; the modules live in this package.
        text = re.sub(r"^import (\w+_pb2) as", r"from protos import \1 as", generated.read_text(), flags=re.M)
        generated.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())

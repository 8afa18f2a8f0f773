"""Compiles the static client and installs it in the runtime's plugin directory."""

import shutil
import subprocess
import tempfile
from pathlib import Path

SOURCE = Path(__file__).with_name("client.c")
NAMES = ("cnv-bridge", "cnv-tuning")
FLAGS = (
    *("-std=c11", "-Os", "-static", "-static-pie", "-fPIE", "-s", "-Wl,--build-id=none"),
    *("-Wall", "-Wextra", "-Werror", "-Wconversion", "-Wshadow"),
    *("-fstack-protector-strong", "-D_FORTIFY_SOURCE=2", "-Wl,-z,relro,-z,now,-z,noexecstack"),
)


def compile_client(out: Path, definitions: tuple[str, ...] = ()) -> None:
    """Compiles `client.c`. Raises OSError (no musl-gcc), subprocess.CalledProcessError."""
    compiler = shutil.which("musl-gcc") or "musl-gcc"
    command = [compiler, *FLAGS, *(f"-D{each}" for each in definitions), "-o", str(out), str(SOURCE)]
    subprocess.run(command, check=True)


def install(client: Path, folder: Path) -> None:
    """Copy the client under both names, each atomically: the runtime never sees a partial plugin. Raises OSError."""
    for name in NAMES:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".", delete=False) as draft:
            draft.write(client.read_bytes())
        Path(draft.name).chmod(0o755)
        Path(draft.name).rename(folder / name)

"""What the launcher's server never loads: each of these would cost every VM memory for as long as it runs."""

import subprocess
import sys

HEAVY = ("api", "msgspec", "pycdlib", "xml", "launcher.domain", "launcher.prepare")


def test_the_server_leaves_heavy_modules_to_its_child() -> None:
    script = "import sys, launcher.server; print('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "launcher.cards" in loaded
    assert not [name for name in loaded if name in HEAVY or name.startswith(tuple(f"{each}." for each in HEAVY))]

"""The native programs and module, built once by the project's own `doit native`."""

import subprocess
import sys
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
DOIT = Path(sys.executable).with_name("doit")


@cache
def native_build() -> Path:
    """The folder with quern-server, quern-holder and quern_native*.so, up to date."""
    done = subprocess.run(
        [DOIT, "run", "--wait", "900", "native"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return ROOT / "native" / "build"

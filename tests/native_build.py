"""The native programs and module, built once by the project's own `doit native`.

QUERN_TEST_BUILD names a CMake build directory to take the programs from instead, made with any
options (the sanitizers').
"""

import os
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DOIT = Path(sys.executable).with_name("doit")


@dataclass(frozen=True)
class Binaries:
    server: Path
    holder: Path


LANGUAGE_MODELS = "examples/pydoc/models.yaml"


def _build(*tasks: str) -> None:
    done = subprocess.run(
        [DOIT, "run", "--wait", "3000", *tasks],
        cwd=ROOT,
        env={**os.environ, "QUERN_MODELS": LANGUAGE_MODELS},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@cache
def native_build() -> Path:
    """The folder with quern-server, quern-holder, quern-chat and quern_native*.so, up to date."""
    _build("native")
    return ROOT / "native" / "build"


@cache
def llama_build() -> Path:
    """The folder with llama.cpp's converter, programs and libraries, up to date."""
    given = os.environ.get("QUERN_TEST_LLAMA")
    if given:
        return Path(given)
    _build("llama")
    return ROOT / "native" / "build" / "llama"


def programs() -> Binaries:
    given = os.environ.get("QUERN_TEST_BUILD")
    folder = Path(given) / "native" / "server" if given else native_build()
    return Binaries(folder / "quern-server", folder / "quern-holder")

"""Builds quern-server and quern-holder once per test session, by CMake, in a temporary directory.

QUERN_TEST_BUILD names a build directory to use instead, made with any options (the sanitizers').
"""

from __future__ import annotations

import functools
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Binaries:
    server: Path
    holder: Path


@functools.cache
def build(directory: Path) -> Binaries:
    """Configures `directory` if it is empty and builds both programs; raises with the log."""
    given = os.environ.get("QUERN_TEST_BUILD")
    build_directory = Path(given) if given else directory
    if not (build_directory / "CMakeCache.txt").exists():
        run(
            "cmake",
            "-S",
            str(ROOT),
            "-B",
            str(build_directory),
            "-G",
            "Ninja",
            "-DCMAKE_BUILD_TYPE=Release",
        )
    run(
        "cmake",
        "--build",
        str(build_directory),
        "--parallel",
        "2",
        "--target",
        "quern-server",
        "quern-holder",
    )
    server = build_directory / "native" / "server"
    return Binaries(server / "quern-server", server / "quern-holder")


def run(*command: str) -> None:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout}")

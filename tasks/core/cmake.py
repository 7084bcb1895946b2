"""CMake and make, run for a build: their percentage as progress, their complaint as one line."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable

from tasks.core.action import progress
from tasks.core.errors import QuernError
from tasks.core.tools import compiler


def cmake_build(source: str, folder: str, options: list[str], targets: list[str]) -> None:
    """Configure the tree `source` for a release and compile `targets` in `folder`, on all cores.

    Raises QuernError: no compiler, CMake's own complaint, or the first compiler error.
    """
    if compiler() is None:
        raise QuernError(
            "no C++ compiler: install one (Debian: apt-get install g++; macOS: xcode-select "
            "--install) or set CXX"
        )
    cmake = shutil.which("cmake", path=os.path.dirname(sys.executable)) or "cmake"
    # make, not ninja, which puts each compiler in a process group of its own: killed hard, it
    # leaves them running.
    configure = [cmake, "-S", source, "-B", folder, "-G", "Unix Makefiles"]
    _run([*configure, "-DCMAKE_BUILD_TYPE=Release", *options], complain=cmake_complaint)
    jobs = str(os.cpu_count() or 1)
    _run(
        [cmake, "--build", folder, "--parallel", jobs, "--target", *targets],
        complain=compiler_complaint,
    )


def _run(command: list[str], complain: Callable[[list[str]], str]) -> None:
    """Run one step; its output goes to the task's log, make's percentage to the terminal."""
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    lines = []
    assert process.stdout is not None
    for line in process.stdout:
        print(line, end="")
        lines.append(line.rstrip())
        step = re.match(r"\[ *(\d+)%\]", line)
        if step:
            progress("compiling", int(step[1]), 100, "%")
    if process.wait():
        raise QuernError(complain(lines))


def cmake_complaint(lines: list[str]) -> str:
    """CMake's error message in one line."""
    text = "\n".join(lines)
    found = re.search(r"CMake Error[^\n]*\n\s*(.+?)(?:\n\s*\n|\Z)", text, re.DOTALL)
    return "CMake: " + " ".join((found[1] if found else text[-300:]).split())


def compiler_complaint(lines: list[str]) -> str:
    """The first compiler or linker error."""
    for line in lines:
        if re.search(r"\b(error|fatal error|undefined reference)\b", line):
            return line.strip()
    return lines[-1] if lines else "the build failed"

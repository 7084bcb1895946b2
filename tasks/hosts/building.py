"""Native programs built on the host that is to run them, where this machine's don't."""

import hashlib
import re
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from tasks.core.action import progress
from tasks.core.cmake import cmake_complaint, compiler_complaint
from tasks.core.errors import QuernError
from tasks.hosts.remote import RemoteHost
from tasks.hosts.remote_digest import remote_sha256
from tasks.hosts.ssh import end
from tasks.hosts.transfer import download, upload

SILENT_SECONDS = 900.0  # a single file may take a slow machine minutes

NEEDED = """
for program in cmake make c++; do command -v $program >/dev/null || { echo $program; exit; }; done
"""
# What goes wrong is told by its status: 11 CMake, 12 the compiler.
BUILD = """
folder=$1
shift
cd -- "$folder" && tar -xf sources.tar || exit
cmake -S . -B build -G 'Unix Makefiles' -DCMAKE_BUILD_TYPE=Release 2>&1 </dev/null || exit 11
cores=$(getconf _NPROCESSORS_ONLN || echo 2)
cmake --build build --parallel "$cores" --target "$@" 2>&1 </dev/null || exit 12
"""


def build_there(
    host: RemoteHost, sources: list[str], programs: Mapping[str, str], partials: Path
) -> None:
    """Build on `host` from the project's `sources`, and bring back `programs` (name → path here).

    Raises QuernError: no compiler there, CMake's or the compiler's own complaint.
    """
    missing = host.run_script(NEEDED).decode().strip()
    if missing:
        raise QuernError(
            f"{host.name}: {missing} is missing there, and this machine's programs don't run "
            "there; install cmake, make and a C++20 compiler on it"
        )
    folder = host.root / "build"
    host.remove_directory(folder)
    host.make_directory(folder)
    with tempfile.NamedTemporaryFile(suffix=".tar") as archive:
        with tarfile.open(archive.name, "w") as tar:
            for path in sources:
                tar.add(path, recursive=False)
        data = Path(archive.name).read_bytes()
        digest = hashlib.sha256(data).hexdigest()
        there = str(folder / "sources.tar")
        upload(host.connection, Path(archive.name), len(data), digest, there, False, None)
    lines = []
    try:
        for line in _told(host, folder, list(programs)):
            print(line)
            lines.append(line)
            step = re.match(r"\[ *(\d+)%\]", line)
            if step:
                progress(f"compiling on {host.name}", int(step[1]), 100, "%")
    except _Failed as failed:
        complain = cmake_complaint if failed.status == 11 else compiler_complaint
        raise QuernError(f"{host.name}: {complain(lines)}") from None
    for name, path in programs.items():
        built = folder / "build" / "native" / "server" / name
        digest = remote_sha256(host.connection, str(built))
        size = host.size(built)
        download(host.connection, str(built), size, digest, Path(path), partials, None)
        Path(path).chmod(0o755)
    host.remove_directory(folder)


class _Failed(Exception):
    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


def _told(host: RemoteHost, folder: Path, targets: list[str]) -> Iterator[str]:
    """The build's output, line by line."""
    connection = host.connection
    with connection.told():
        channel = connection.start_script(BUILD, str(folder), *targets, timeout=SILENT_SECONDS)
        try:
            channel.shutdown_write()
            for line in channel.makefile("rb"):
                yield line.decode(errors="replace").rstrip("\n")
            status = channel.recv_exit_status()
        finally:
            end(channel)
    if status:
        raise _Failed(status)

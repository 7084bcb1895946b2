"""llama.cpp: its converter and its server, from the one source that llama-cpp-python brings.

The source distribution of llama-cpp-python holds the whole tree of llama.cpp, so that library,
converter and server belong together. A project with classifiers only never fetches it.
"""

import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tasks.core.cmake import cmake_build
from tasks.core.configuration import load_configuration
from tasks.core.digest import read_digests
from tasks.core.errors import QuernError, TryAgainLater
from tasks.core.recipe import Recipe
from tasks.core.tools import compiler, compiler_platform, package_version
from tasks.models.layout import CONVERTER, LLAMA_FOLDER
from tasks.models.llama_cpp.files import PROGRAMS, built_files, dispatches

# The version is also pyproject.toml's, for the Python package.
VERSION = "0.3.36"
SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
SOURCE = f"{LLAMA_FOLDER}/llama_cpp_python-{VERSION}.tar.gz"
TREE = f"llama_cpp_python-{VERSION}/vendor/llama.cpp/"

OPTIONS = (
    "-DGGML_NATIVE=OFF",
    "-DBUILD_SHARED_LIBS=ON",
    "-DCMAKE_PLATFORM_NO_VERSIONED_SONAME=ON",
    "-DCMAKE_BUILD_WITH_INSTALL_RPATH=ON",
    f"-DCMAKE_INSTALL_RPATH={'@loader_path' if sys.platform == 'darwin' else '$ORIGIN'}",
    "-DLLAMA_BUILD_UI=OFF",
    "-DLLAMA_USE_PREBUILT_UI=OFF",
    "-DLLAMA_OPENSSL=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    # The same bytes wherever it is built: it would look for a commit in our own repository.
    "-DGIT_EXE=NO",
    "-DLLAMA_BUILD_NUMBER=0",
    f"-DLLAMA_BUILD_COMMIT=llama-cpp-python-{VERSION}",
)


def task_llama() -> Iterator[dict[str, Any]]:
    """Fetch llama.cpp, pinned, and provide its converter and its server."""
    if not load_configuration().language_models():
        return
    yield Recipe(
        name="llama source",
        version=1,
        function="tasks.llama:download",
        outputs={"source": SOURCE},
        parameters={"version": VERSION, "sha256": SHA256},
    ).task("source", f"Fetch the source of llama-cpp-python {VERSION}, checked by its SHA-256.")
    yield Recipe(
        name="llama converter",
        version=1,
        function="tasks.llama:pack_converter",
        inputs={"source": SOURCE},
        outputs={"converter": CONVERTER},
    ).task("converter", "Pack llama.cpp's converter, Hugging Face to GGUF, as one archive.")
    yield server_recipe().task("server", "Build llama-server and its libraries with CMake.")


def server_recipe() -> Recipe:
    """The recipe of llama.cpp's programs and libraries, portable to any processor of this kind."""
    program = compiler()
    return Recipe(
        name="llama server",
        version=1,
        function="tasks.llama:build",
        inputs={"source": SOURCE},
        outputs={name: f"{LLAMA_FOLDER}/{name}" for name in built_files()},
        parameters={"options": [*OPTIONS, *dispatch_options()]},
        tools={"cmake": package_version("cmake"), **compiler_platform()},
        tool_files=(program,) if program else (),
    )


def dispatch_options() -> list[str]:
    """CMake's options for kernels chosen at run time, where the tree offers that."""
    if dispatches():
        return ["-DGGML_BACKEND_DL=ON", "-DGGML_CPU_ALL_VARIANTS=ON"]
    return []


def download(version: str, sha256: str, source: str) -> None:
    """Let pip fetch the source distribution, from wherever pip is told to, to `source`.

    Raises TryAgainLater when pip can't, QuernError when its SHA-256 is another.
    """
    with tempfile.TemporaryDirectory(dir=Path(source).parent) as folder:
        wanted = ["--no-deps", "--no-binary", "llama-cpp-python", f"llama-cpp-python=={version}"]
        done = subprocess.run(
            [sys.executable, "-m", "pip", "download", "--dest", folder, *wanted],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        print(done.stdout)
        if done.returncode:
            complaints = [line for line in done.stdout.splitlines() if line.startswith("ERROR")]
            told = complaints[-1] if complaints else f"pip ended with status {done.returncode}"
            raise TryAgainLater(f"llama-cpp-python {version} can't be fetched: {told}")
        found = Path(folder) / Path(source).name
        _, _, arrived = read_digests(found, sha256=True)
        if arrived != sha256:
            raise QuernError(
                f"{found.name}: its SHA-256 is {arrived}, tasks/llama.py says {sha256}; it is not "
                "the source that was pinned, don't use it"
            )
        os.replace(found, source)


def unpack(source: str, folder: str, wanted: tuple[str, ...]) -> None:
    """Unpack what of llama.cpp's tree lies under one of `wanted` into `folder`."""
    with tarfile.open(source) as archive:
        archive.extraction_filter = getattr(tarfile, "data_filter", None)  # not in Debian 12
        for member in archive:
            path = member.name.removeprefix(TREE)
            if path != member.name and path.startswith(wanted):
                member.name = path
                archive.extract(member, folder)


def pack_converter(source: str, converter: str) -> None:
    """Pack convert_hf_to_gguf.py and the packages it imports, `conversion` and the tree's own
    `gguf`, so that `converter` on sys.path is all that is needed. The same bytes each time."""
    with tempfile.TemporaryDirectory(dir=Path(converter).parent) as folder:
        unpack(source, folder, ("convert_hf_to_gguf.py", "conversion/", "gguf-py/gguf/"))
        with zipfile.ZipFile(converter, "w", zipfile.ZIP_DEFLATED) as archive:
            for path in sorted(Path(folder).rglob("*.py")):
                name = path.relative_to(folder).as_posix().removeprefix("gguf-py/")
                archive.writestr(zipfile.ZipInfo(name), path.read_bytes())


def build(source: str, options: list[str], **outputs: str) -> None:
    """Compile llama.cpp in a fresh folder; copy the built files to `outputs` (name → path)."""
    with tempfile.TemporaryDirectory(dir=Path(next(iter(outputs.values()))).parent) as folder:
        tree, binaries = f"{folder}/llama.cpp", f"{folder}/build"
        parts = ("CMakeLists.txt", "LICENSE", "cmake/", "common/", "ggml/", "include/", "licenses/")
        unpack(source, tree, (*parts, "src/", "tools/", "vendor/", "app/", "scripts/"))
        prefixes = f"-ffile-prefix-map={tree}=llama.cpp -ffile-prefix-map={binaries}=build"
        flags = [f"-DCMAKE_{language}_FLAGS={prefixes}" for language in ("C", "CXX")]
        cmake_build(tree, binaries, [*options, *flags], list(PROGRAMS))
        for name, path in outputs.items():
            os.replace(Path(binaries) / "bin" / name, path)

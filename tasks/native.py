"""Native: build the C++ server, the holder that keeps it, and the Python module, with CMake."""

import os
import shutil
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tasks.core.cmake import cmake_build
from tasks.core.configuration import load_configuration
from tasks.core.digest import files_below
from tasks.core.recipe import Recipe
from tasks.core.tools import compiler, package_version, static_library

LIBRARIES = ("event_core", "event_extra", "event_pthreads", "jpeg", "png", "z")
BUILD = "native/build"
COMMON = ("native/engine", "native/image")


def task_native() -> Iterator[dict[str, Any]]:
    """Build the C++ server and its holder, and the Python module, from native/."""
    yield native_recipe(
        {"server": "quern-server", "holder": "quern-holder"}, (*COMMON, "native/server"), []
    ).task("server", "Build quern-server and quern-holder with CMake.")
    language_models = load_configuration().language_models().values()
    if any(wanted.chat for model in language_models for wanted in model.deploy.values()):
        yield native_recipe(
            {"chat": "quern-chat"}, (*COMMON, "native/server", "native/chat"), []
        ).task("chat", "Build quern-chat, which stands before llama-server, with CMake.")
    yield native_recipe(
        {"module": f"quern_native{sysconfig.get_config_var('EXT_SUFFIX')}"},
        (*COMMON, "native/python"),
        ["-DQUERN_PYTHON=ON", "-DQUERN_SERVER=OFF"],
    ).task("python", "Build quern_native, the engine as a Python module, with pybind11.")


def native_recipe(outputs: dict[str, str], folders: tuple[str, ...], options: list[str]) -> Recipe:
    """The recipe that builds `outputs` (role → file name) from the sources in `folders`."""
    sources = ["CMakeLists.txt", *(path for folder in folders for path in files_below(folder))]
    libraries = [path for name in LIBRARIES if (path := static_library(name))]
    program = compiler()
    return Recipe(
        name="native",
        version=1,
        function="tasks.native:build",
        inputs={"sources": sources},
        outputs={role: f"{BUILD}/{name}" for role, name in outputs.items()},
        parameters={"options": options, "names": outputs},
        tools={
            "cmake": package_version("cmake"),
            "pybind11": package_version("pybind11"),
            "python": sys.version.split()[0],
        },
        tool_files=(*([program] if program else []), *libraries),
    )


def build(sources: list[str], options: list[str], names: dict[str, str], **outputs: str) -> None:
    """Configure and compile in a fresh folder; copy the built files to `outputs` (role → path).

    The folder is fresh because make goes by times, and an edit that keeps them must count.
    Raises QuernError: no compiler, CMake's own complaint, or the first compiler error.
    """
    with tempfile.TemporaryDirectory(dir=Path(next(iter(outputs.values()))).parent) as folder:
        targets = [name.partition(".")[0] for name in names.values()]
        cmake_build(".", folder, [f"-DPython_EXECUTABLE={sys.executable}", *options], targets)
        for role, name in names.items():
            stem = name.partition(".")[0]
            built = [p for p in Path(folder).rglob(f"{stem}*") if p.is_file() and is_product(p)]
            shutil.copy(built[0], outputs[role])


def is_product(path: Path) -> bool:
    """Whether a file in the build folder is a linked program or module."""
    return path.suffix in ("", ".so") and os.access(path, os.X_OK)

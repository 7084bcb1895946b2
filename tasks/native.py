"""Native: build the C++ server, the holder that keeps it, and the Python module, with CMake."""

import json
import os
import shutil
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from tasks.core.atomic import write_atomically
from tasks.core.cmake import cmake_build
from tasks.core.configuration import Configuration, load_configuration
from tasks.core.digest import canonical_json, files_below
from tasks.core.errors import QuernError
from tasks.core.recipe import Paths, Recipe
from tasks.core.tools import compiler, compiler_platform, package_version, static_library
from tasks.hosts.channels import host_of, host_settings, platform_known
from tasks.hosts.host import Platform, glibc_needed
from tasks.models.layout import HOLDER, PLATFORM, SERVER, built_for

LIBRARIES = ("event_core", "event_extra", "event_pthreads", "jpeg", "png", "z")
BUILD = "native/build"
COMMON = ("native/engine", "native/image")
SERVER_FOLDERS = (*COMMON, "native/server")


def task_native() -> Iterator[dict[str, Any]]:
    """Build the C++ server and its holder, and the Python module, from native/."""
    server = native_recipe(
        {"server": "quern-server", "holder": "quern-holder", "platform": "platform.json"},
        SERVER_FOLDERS,
        [],
    )
    yield server.task("server", "Build quern-server and quern-holder with CMake.")
    configuration = load_configuration()
    served = {host for model in configuration.classifiers().values() for host in model.deploy}
    for host in sorted(served & configuration.hosts.keys()):
        if configuration.hosts[host].ssh:
            yield host_recipe(host, configuration).task(
                f"server@{host}", f"Provide quern-server and quern-holder for {host}."
            )
    language_models = configuration.language_models().values()
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
    sources = sources_in(folders)
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
            **compiler_platform(),
        },
        tool_files=(*([program] if program else []), *libraries),
    )


def sources_in(folders: tuple[str, ...]) -> list[str]:
    """What CMake builds the programs of `folders` from."""
    return ["CMakeLists.txt", *(path for folder in folders for path in files_below(folder))]


def host_recipe(host: str, configuration: Configuration) -> Recipe:
    """The recipe of the programs for `host`: this machine's, where they run there, else built
    there."""
    settings = host_settings(host, configuration)
    return Recipe(
        name="native for a host",
        version=1,
        function="tasks.native:provide",
        inputs=partial(host_inputs, settings),
        outputs={role: built_for(path, host) for role, path in HOST_FILES.items()},
        parameters={"settings": settings, "where": configuration.hosts[host].programs},
    )


HOST_FILES = {"server": SERVER, "holder": HOLDER, "platform": PLATFORM}


def host_inputs(settings: dict[str, Any]) -> dict[str, Paths]:
    """The programs of this machine, their sources, and what the host is, asked once."""
    known = platform_known(settings["host"])
    if not known.exists():
        platform = host_of(Path.cwd(), settings).platform()
        write_atomically(known, canonical_json(platform.as_data()) + b"\n")
    return {
        **{f"{role}_here": path for role, path in HOST_FILES.items()},
        "sources": sources_in((*SERVER_FOLDERS, "native/chat")),  # CMakeLists.txt names both
        "platform_there": str(known),
    }


def provide(
    settings: dict[str, Any],
    where: str,
    sources: list[str],
    platform_there: str,
    server_here: str,
    holder_here: str,
    platform_here: str,
    **outputs: str,
) -> None:
    """Copy this machine's programs to `outputs` (role → path) if they run on the host, else build
    them there and bring them back. Raises QuernError.
    """
    there = Platform.of(json.loads(Path(platform_there).read_bytes()))
    here = Platform.of(json.loads(Path(platform_here).read_bytes()))
    host = settings["host"]
    if where == "there" or (where == "automatic" and not there.runs_programs_of(here)):
        from tasks.hosts.building import build_there
        from tasks.hosts.remote import RemoteHost

        remote = host_of(Path.cwd(), settings)
        assert isinstance(remote, RemoteHost)
        built = {"quern-server": outputs["server"], "quern-holder": outputs["holder"]}
        build_there(remote, sources, built, Path(".quern/transfers"))
        platform = Platform(there.system, there.machine, glibc_needed(*built.values()))
        write_atomically(Path(outputs["platform"]), canonical_json(platform.as_data()) + b"\n")
        return
    if not there.runs_programs_of(here):
        raise QuernError(
            f"{host} is {there}, the programs built here are for {here}; set hosts.{host}.programs "
            "to there, and have a compiler on it"
        )
    shutil.copy(server_here, outputs["server"])
    shutil.copy(holder_here, outputs["holder"])
    shutil.copy(platform_here, outputs["platform"])


def build(sources: list[str], options: list[str], names: dict[str, str], **outputs: str) -> None:
    """Configure and compile in a fresh folder; copy the built files to `outputs` (role → path).

    The folder is fresh because make goes by times, and an edit that keeps them must count.
    Raises QuernError: no compiler, CMake's own complaint, or the first compiler error.
    """
    with tempfile.TemporaryDirectory(dir=Path(next(iter(outputs.values()))).parent) as folder:
        platform = outputs.pop("platform", None)
        names = {role: name for role, name in names.items() if role in outputs}
        targets = [name.partition(".")[0] for name in names.values()]
        cmake_build(".", folder, [f"-DPython_EXECUTABLE={sys.executable}", *options], targets)
        for role, name in names.items():
            stem = name.partition(".")[0]
            found = [p for p in Path(folder).rglob(f"{stem}*") if p.is_file() and is_product(p)]
            shutil.copy(found[0], outputs[role])
    if platform:
        system = os.uname()
        built = Platform(system.sysname, system.machine, glibc_needed(*outputs.values()))
        write_atomically(Path(platform), canonical_json(built.as_data()) + b"\n")


def is_product(path: Path) -> bool:
    """Whether a file in the build folder is a linked program or module."""
    return path.suffix in ("", ".so") and os.access(path, os.X_OK)

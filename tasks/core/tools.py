"""Versions and files of the tools that do the work, found without importing or running them."""

import os
import shutil
import sysconfig
from functools import lru_cache

LIBRARY_FOLDERS = (
    f"/usr/lib/{sysconfig.get_config_var('MULTIARCH') or ''}",
    "/usr/lib",
    "/usr/local/lib",
    "/opt/homebrew/lib",
    "/opt/homebrew/opt/jpeg-turbo/lib",
)


@lru_cache
def _installed() -> dict[str, str]:
    # The folder names say it all; reading each package's METADATA would cost milliseconds.
    versions = {}
    for name in os.listdir(sysconfig.get_path("purelib")):
        if name.endswith(".dist-info"):
            package, _, version = name.removesuffix(".dist-info").partition("-")
            versions[package.lower().replace("-", "_")] = version
    return versions


def package_version(package: str) -> str:
    """The installed version of a Python package, or "missing"."""
    return _installed().get(package.lower().replace("-", "_"), "missing")


@lru_cache
def compiler() -> str | None:
    """The C++ compiler's program file, links resolved: `CXX` or `c++`."""
    found = shutil.which(os.environ.get("CXX", "c++"))
    return os.path.realpath(found) if found else None


def compiler_platform(system: os.uname_result | None = None) -> dict[str, str]:
    """What the compiler's program file doesn't say of what it makes, as `tools` of a recipe: macOS
    has one `c++` for every processor, which starts what Apple's tools have installed."""
    system = system or os.uname()
    if system.sysname != "Darwin":
        return {}
    return {"platform": f"{system.sysname} {system.release} {system.machine}"}


@lru_cache
def static_library(name: str) -> str | None:
    """The file of a system library linked statically, `lib{name}.a`."""
    for folder in LIBRARY_FOLDERS:
        path = os.path.join(folder, f"lib{name}.a")
        if os.path.exists(path):
            return os.path.realpath(path)
    return None
